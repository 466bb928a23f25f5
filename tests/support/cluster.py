"""Workers and a router started one by one, so that a test can stand between them and kill any of them.

Unlike the launcher, nothing here is restarted: a worker that a test kills stays dead.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from faulty_worker import BOLT, STRUCK, Fault, FaultFile
from freed import assert_all_freed
from kv_proxy import KvProxy
from shared_templates import SharedStarter
from until import PATIENCE, until

from xgr_runtime.client import XgrClient
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, to_argv
from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.topology import ROUTER, WORKERS
from xgr_runtime.wire.answers import WorkerStatus


class Cluster(AbstractContextManager["Cluster"]):
    """`prefill` + `decode` workers and a router; with `proxies`, all KV passes a `KvProxy`, in frames.

    `colocated`: the decode worker reads the prefill worker's memory in place. `decode_settings` are decode
    workers' alone. `sglang` are URLs of SGLang servers that take prompts as well. The `faulty` workers fail
    on command.
    """

    def __init__(
        self,
        model: Path,
        catalog: Path,
        prefill: int = 1,
        decode: int = 1,
        proxies: bool = False,
        sglang: Sequence[str] = (),
        faulty: Sequence[str] = (),
        colocated: bool = False,
        decode_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xgr-test-"))
        self.children: dict[str, Child] = {}
        self.incarnations: dict[int, str] = {}
        self.proxies: list[KvProxy] = []
        self._prefill = [f"prefill-{i}" for i in range(prefill)]
        self._decode = [f"decode-{i}" for i in range(decode)]
        self._use_proxies = proxies
        self._sglang = sglang
        self._faulty = faulty
        self._faults = self.folder / "faults"
        self._faults.mkdir()
        self._common: dict[str, Any] = {
            "model_path": str(model),
            "threads": 1,
            "kv_bytes": 64 << 20,
            "log_level": "ERROR",  # losing workers is what the tests do
            "heartbeat": 1.0 if sglang else 0.1,  # an SGLang server answers in turns of its scheduler
            "kv_transfer": "frames" if proxies else "auto",
        } | settings
        memory = str(self.folder / "memory.json") if colocated else ""
        self._of_prefill = {"publish_memory": memory}
        self._of_decode = {"memory_of": memory} | dict(decode_settings or {})
        self._catalog = str(catalog)
        backend: Any = self._common.get("model_backend", "auto")
        self._starter = SharedStarter(
            ServeConfig(
                model_path=str(model),
                catalog=str(catalog),
                model_backend=backend,
                threads=1,
                layout="colocated" if colocated else "split",  # workers that share weights import more
            )
        )
        self.url = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def client(self) -> XgrClient:
        return XgrClient(self.url)

    def pid(self, name: str) -> int:
        return self.children[name].pid

    def kill(self, name: str) -> None:
        """kill -9, and wait until the process is gone."""
        self.children[name].kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def arm(self, name: str, point: str) -> Path:
        """A faulty worker hangs when it next comes to `point`; this file then exists until it may go on."""
        fault = FaultFile(self._faults / name)
        fault.path.with_name(BOLT).touch()
        fault.write(Fault("strike", point=point))
        return fault.path.with_suffix(STRUCK)

    def in_flight(self, name: str) -> int:
        """Requests that the router has at a worker."""
        with self.client() as client:
            return next(worker.in_flight for worker in client.workers() if worker.worker == name)

    def settled(self) -> list[WorkerStatus]:
        """The living workers; nothing may be held any more."""
        with self.client() as client:
            return assert_all_freed(client)

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
            child.close()
        for proxy in self.proxies:
            proxy.close()
        shutil.rmtree(self.folder)

    def _start(self) -> None:
        until(self._starter.settled, "templates have imported")
        for name in self._prefill:
            self._spawn_prefill(name)
        for name in self._decode:
            self._spawn_decode(name)
        end = time.monotonic() + PATIENCE
        for name in list(self.children):
            self._note(name, end)
        self.url = self.start_router("router", end=end)
        with self.client() as client:
            until(lambda: all(worker.usable for worker in client.workers()), "the router sees all workers")

    def start_router(self, name: str, port: int = 0, end: float | None = None) -> str:
        """One more router of the workers that the cluster began with, or the same one again; its URL."""
        if (old := self.children.pop(name, None)) is not None:
            old.kill()
            old.close()
        prefill = [*map(self._address, self._prefill), *self._sglang]
        decode = [self._address(worker) for worker in self._decode]
        own = {"catalog": self._catalog, "port": port, "prefill": prefill, "decode": decode}
        # Routers are told apart by their names.
        child = self._spawn(name, "router", RouterConfig, own if name == "router" else own | {"name": name})
        return f"http://127.0.0.1:{child.wait_ready(end or time.monotonic() + PATIENCE)['port']}"

    def restart(self, name: str) -> None:
        """Start a worker again that has ended, and wait until it is ready."""
        old = self.children.pop(name)
        old.kill()
        old.close()
        (self._spawn_prefill if name in self._prefill else self._spawn_decode)(name)
        self._note(name, time.monotonic() + PATIENCE)

    def beside(self, *names: str) -> list[str]:
        """The addresses of more workers, `prefill-N` or `decode-N`, of which the router is not told."""
        for name in names:
            (self._spawn_prefill if name.startswith("prefill") else self._spawn_decode)(name)
        for name in names:
            self._note(name, time.monotonic() + PATIENCE)
        return [self._address(name) for name in names]

    def _spawn_prefill(self, name: str) -> None:
        own = {"name": name, "control_address": self._address(name)}
        self._spawn(name, "prefill_worker", PrefillConfig, own | self._of_prefill)

    def _spawn_decode(self, name: str) -> None:
        data = self._address(f"{name}.data")
        own = {
            "name": name,
            "control_address": self._address(name),
            "catalog": self._catalog,
            "data_address": data,
        }
        if self._use_proxies:
            proxy = KvProxy(self._address(f"{name}.proxy"), data)
            self.proxies.append(proxy)
            own["advertise_data_address"] = proxy.address
        self._spawn(name, "decode_worker", DecodeConfig, own | self._of_decode)

    def _note(self, name: str, end: float) -> None:
        self.incarnations[self.children[name].wait_ready(end)["incarnation"]] = name

    def _spawn(self, name: str, module: str, kind: Any, own: Mapping[str, Any]) -> Child:
        """A process with its own settings, and those of all that it knows."""
        shared = {k: v for k, v in self._common.items() if k in kind.__struct_fields__}
        program = self._program(name, module, to_argv(kind(**(shared | dict(own)))))
        child = Child(program, start=self._starter.start)
        child.start()
        self.children[name] = child
        return child

    def _program(self, name: str, module: str, argv: list[str]) -> Program:
        if name not in self._faulty:
            return Program(name, module, argv, template=ROUTER if module == ROUTER else WORKERS)
        return Program(name, "faulty_worker", [module, *argv], {"FAULTS": str(self._faults)}, WORKERS)

    def _address(self, name: str) -> str:
        return f"ipc://{self.folder / name}"
