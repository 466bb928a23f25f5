"""A Ray cluster of several nodes on this machine, and `xgr ray` as a user runs it there."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from until import PATIENCE

# Without what only watches: two cores are few for three nodes.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
}
MEMORY = 80 << 20  # bytes of a node's object store, which nothing of ours uses


class RayCluster:
    """A head and `more` nodes, each with `cpus` for actors. `environ` is that of their processes."""

    def __init__(self, more: int, cpus: int, **system: Any) -> None:
        """`system`: settings of Ray's own."""
        os.environ.update(QUIET)  # its processes take ours
        from ray.cluster_utils import Cluster

        self.nodes: list[Any] = []
        self._cpus = cpus
        self.cluster: Any = Cluster()
        self._system = system
        for _ in range(1 + more):
            self.add()

    def add(self) -> Any:
        first = not self.nodes
        settings: dict[str, Any] = {"num_cpus": self._cpus, "object_store_memory": MEMORY}
        if first:
            settings |= {"include_dashboard": False, "_system_config": self._system}
        self.nodes.append(self.cluster.add_node(wait=True, **settings))
        return self.nodes[-1]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill(self, node_id: str) -> None:
        """The node whose id begins so ends at once, with all that runs there."""
        node = next(node for node in self.nodes if node.node_id.startswith(node_id))
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes):  # the head last; nobody is asked, who may be busy
            self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.shutdown()

    def run(self, *argv: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """`xgr ray ...` to its end."""
        command = [sys.executable, "-m", "xgr_runtime.cli", "ray", *argv, "--address", self.address]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
