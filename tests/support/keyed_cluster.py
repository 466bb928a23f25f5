"""Workers and routers over tcp, each with a key of its own: on loopback, or each on its own host."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import Cluster
from hosts import Hosts
from ports import free_port

from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.topology import ROUTER, WORKERS
from xgr_runtime.transport import new_key_pair
from xgr_runtime.transport.keyring import read_key, write_key

NAMES = ("prefill-0", "decode-0", "router")


class KeyedCluster(Cluster):
    """One worker of each kind and a router, each with a key, on tcp ports; KV comes in frames."""

    def __init__(self, model: Path, catalog: Path, names: Sequence[str] = NAMES, **settings: Any) -> None:
        """`names` are all that get a key."""
        super().__init__(model, catalog, **({"kv_transfer": "frames", "log_level": "WARNING"} | settings))
        self.keys = Path(tempfile.mkdtemp(prefix="xgr-test-"))
        self.names = names
        self.addresses: dict[str, str] = {}
        self.public = {}
        for name in names:
            self.public[name], secret = new_key_pair()
            write_key(self.keys, name, secret)
        (self.keys / "allow").write_text("".join(f"{name} {key}\n" for name, key in self.public.items()))

    def secrets(self) -> list[str]:
        return [read_key(self.keys / f"{name}.key")[1] for name in self.names]

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.keys)

    def _host(self, name: str) -> str:
        """Where a process listens."""
        return "127.0.0.1"

    def _address(self, name: str) -> str:
        if name not in self.addresses:
            self.addresses[name] = f"tcp://{self._host(name)}:{free_port()}"
        return self.addresses[name]

    def _spawn(self, name: str, module: str, kind: Any, own: Mapping[str, Any]) -> Child:
        more: dict[str, Any] = {
            "curve_key": str(self.keys / f"{name}.key"),
            "curve_allow": str(self.keys / "allow"),
        }
        if module == "router":
            more["prefill"] = [f"{self._address('prefill-0')}#prefill-0"]
            more["decode"] = [f"{self._address('decode-0')}#decode-0"]
        return super()._spawn(name, module, kind, dict(own) | more)


class HostsCluster(KeyedCluster):
    """The same on `hosts`, one for each process and of its name; a router's own is where it takes HTTP."""

    def __init__(self, hosts: Hosts, model: Path, catalog: Path, **settings: Any) -> None:
        super().__init__(model, catalog, names=hosts.names, **settings)
        self.hosts = hosts

    def _host(self, name: str) -> str:
        return self.hosts.address(name.removesuffix(".data"))

    def _program(self, name: str, module: str, argv: list[str]) -> Program:
        template = ROUTER if module == ROUTER else WORKERS
        there = [self.hosts.space(name), module, *argv]
        return Program(name, "network_spaces", there, template=template)
