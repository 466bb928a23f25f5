"""A stock SGLang server in prefill mode with our plugin, in processes of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
from ports import free_port

START_SECONDS = 240.0
COMMON = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "dtype": "float32",
    "host": "127.0.0.1",
    "mem-fraction-static": "0.2",
    "max-total-tokens": "8192",
    "max-running-requests": "32",
    "log-level": "warning",
    "skip-tokenizer-init": "",
    "disable-overlap-schedule": "",
    "sleep-on-idle": "",
}
PREFILL = {"disaggregation-mode": "prefill", "disaggregation-transfer-backend": "xgr_zmq"}


class StockServer(AbstractContextManager["StockServer"]):
    """`url` once it is up. `settings` are SGLang's flags without their dashes; an empty value is a switch.

    Without `prefill` it is a whole server, for comparison.
    """

    def __init__(
        self, model: Path, settings: dict[str, str] | None = None, prefill: bool = True, threads: int = 1
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = {"model-path": str(model), "port": str(self.port), **COMMON, **(PREFILL if prefill else {})}
        flags |= settings or {}
        self._argv = [arg for name, value in flags.items() for arg in (f"--{name}", value) if arg]
        self._threads = threads
        self._prefill = prefill
        self._ranks = 1
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the server
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StockServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self, ranks: int = 1) -> None:
        """Start it (again, on the same port) with so many ranks, and wait until it answers."""
        self._ranks = ranks
        argv = [*self._argv, "--tp-size", str(ranks)]
        command = [sys.executable, "-m", "xgr_runtime.model.sglang.serve", *argv]
        process = self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, env=self._environ()
        )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert process.poll() is None, f"the server ended:\n{self.log()[-4000:]}"
            assert time.monotonic() < until, f"the server never came up:\n{self.log()[-4000:]}"
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, all of it, and wait until it is gone."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            family = self.processes()
            os.killpg(self._process.pid, signal.SIGKILL)
            psutil.wait_procs(family, timeout=10)
        self._process.wait()
        self._process = None

    def processes(self) -> list[psutil.Process]:
        """The server's main process and those below it."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def scheduler(self) -> psutil.Process:
        """The process that runs the model."""
        return next(p for p in self.processes() if "scheduler" in " ".join(p.cmdline()))

    def log(self) -> str:
        """What it said so far."""
        self._log.seek(0)
        return self._log.read()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def _environ(self) -> dict[str, str]:
        # Its check for leaks while idle stays on where hand-overs are tested. It ends a 0.5.20 server on a
        # CPU after a few wide beam searches of its own.
        check = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1" if self._prefill else "0"}
        # A core for each rank; SGLang wants to be told where there are fewer NUMA nodes than ranks.
        cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
        bind = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(next(cores)) for _ in range(self._ranks))}
        environ = {**os.environ, **check, "OMP_NUM_THREADS": str(self._threads)}
        return {**environ, **bind} if self._ranks > 1 else environ
