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
from typing import Any

from freed import assert_all_freed
from kv_proxy import KvProxy

from xgr_runtime.answer import WorkerStatus
from xgr_runtime.child import Child, Program
from xgr_runtime.client import XgrClient
from xgr_runtime.config import DecodeConfig, PrefillConfig, RouterConfig, to_argv

START_SECONDS = 120.0


class Cluster(AbstractContextManager["Cluster"]):
    """`prefill` + `decode` workers and a router; with `proxies`, all KV passes a `KvProxy`, in frames.

    `colocated`: the decode worker reads the prefill worker's memory in place. `decode_settings` are decode
    workers' alone. `sglang` are URLs of SGLang servers that take prompts as well.
    """

    def __init__(
        self,
        model: Path,
        catalog: Path,
        prefill: int = 1,
        decode: int = 1,
        proxies: bool = False,
        sglang: Sequence[str] = (),
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
        self._common: dict[str, Any] = {
            "model_path": str(model),
            "threads": 1,
            "kv_bytes": 64 << 20,
            "log_level": "ERROR",  # losing workers is what the tests do
            "kv_transfer": "frames" if proxies else "auto",
        } | settings
        memory = str(self.folder / "memory.json") if colocated else ""
        self._of_prefill = {"publish_memory": memory}
        self._of_decode = {"memory_of": memory} | dict(decode_settings or {})
        self._catalog = str(catalog)
        self.url = ""

    def __enter__(self) -> Cluster:
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
        for name in self._prefill:
            self._spawn_prefill(name)
        for name in self._decode:
            self._spawn_decode(name)
        until = time.monotonic() + START_SECONDS
        for name in list(self.children):
            self._note(name, until)
        router = RouterConfig(
            model_path=self._common["model_path"],
            log_level=self._common["log_level"],
            catalog=self._catalog,
            port=0,
            prefill=[*map(self._address, self._prefill), *self._sglang],
            decode=[self._address(name) for name in self._decode],
        )
        child = self._spawn("router", router, "router")
        self.url = f"http://127.0.0.1:{child.wait_ready(until)['port']}"
        with self.client() as client:
            while not all(worker.usable for worker in client.workers()):
                assert time.monotonic() < until, "the router never saw all workers"
                time.sleep(0.05)

    def restart(self, name: str) -> None:
        """Start a worker again that has ended, and wait until it is ready."""
        old = self.children.pop(name)
        old.kill()
        old.close()
        (self._spawn_prefill if name in self._prefill else self._spawn_decode)(name)
        self._note(name, time.monotonic() + START_SECONDS)

    def _spawn_prefill(self, name: str) -> None:
        self._spawn("prefill_worker", self._config(PrefillConfig, name, **self._of_prefill))

    def _spawn_decode(self, name: str) -> None:
        data = {"catalog": self._catalog, "data_address": self._address(f"{name}.data")}
        if self._use_proxies:
            proxy = KvProxy(self._address(f"{name}.proxy"), data["data_address"])
            self.proxies.append(proxy)
            data["advertise_data_address"] = proxy.address
        self._spawn("decode_worker", self._config(DecodeConfig, name, **(data | self._of_decode)))

    def _note(self, name: str, until: float) -> None:
        self.incarnations[self.children[name].wait_ready(until)["incarnation"]] = name

    def _config(self, kind: Any, name: str, **own: Any) -> Any:
        wanted = {k: v for k, v in self._common.items() if k in kind.__struct_fields__}
        return kind(**(wanted | {"name": name, "control_address": self._address(name)} | own))

    def _spawn(self, module: str, config: Any, name: str = "") -> Child:
        child = Child(Program(name or config.name, module, to_argv(config)))
        child.start()
        self.children[child.name] = child
        return child

    def _address(self, name: str) -> str:
        return f"ipc://{self.folder / name}"
