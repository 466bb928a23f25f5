"""Asks a deployment's controller on a Ray cluster who its workers are.

For processes that are Ray's already. A router is none, and follows the file that whoever started it writes of
this: Ray ends each process that has joined a cluster some time after the cluster's head was lost.
"""

from typing import Any

from xgr_runtime.discovery import WorkerAddress, check_twice
from xgr_runtime.errors import ConfigError

NAMESPACE = "xgr-runtime"  # of all actors of ours
_SECONDS = 5.0  # that a look may take


class Directory:
    """See `Source`. In a process that has joined the cluster."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._controller: Any = None

    def __str__(self) -> str:
        return f"deployment {self._deployment} on Ray"

    def look(self) -> list[WorkerAddress]:
        """See `Source.look`."""
        import ray

        try:
            if self._controller is None:
                self._controller = ray.get_actor(self._deployment, NAMESPACE)
            told = ray.get(self._controller.addresses.remote(), timeout=_SECONDS)
        except (ValueError, ray.exceptions.RayError) as error:  # it is not there, or does not answer
            self._controller = None
            raise ConfigError(
                f"the controller of {self} does not answer ({type(error).__name__}): is the head there?"
            ) from None
        workers = [WorkerAddress(role, address) for role, address in told]
        if {worker.role for worker in workers} != {"prefill", "decode"}:
            raise ConfigError(f"{self} has no pair of workers yet: wait, or look at `xgr ray status`")
        check_twice(workers, str(self))
        return workers
