"""A deployment as a user runs it, for tests that break it: its processes, and faults on command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
from faulty_worker import BOLT, STRUCK, Fault, FaultFile
from link_proxy import Direction
from serve import Serve
from until import PATIENCE, until

from xgr_runtime.client import XgrClient

ROOT = Path(__file__).resolve().parents[2]
# Shorter than by default, so that a stopped process is soon noticed; long for a machine without spare time,
# on which one that lives may come late by seconds.
TIMES = {"heartbeat": 0.2, "silence": 6.0, "lease": 9.0, "drain_timeout": 5.0}


class Fleet(AbstractContextManager["Fleet"]):
    """`xgr serve` with `prefill` + `decode` workers. The `remote` ones are behind links that can be held.

    `settings` are those of `xgr serve`; `wrapper` is a command in front of it, `said` a file instead of
    `lines`, which hold what the deployment said.
    """

    def __init__(
        self,
        model: Path,
        catalog: Path,
        prefill: int = 2,
        decode: int = 2,
        remote: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        said: Path | None = None,
        **settings: Any,
    ) -> None:
        self.workers = [f"prefill-{i}" for i in range(prefill)] + [f"decode-{i}" for i in range(decode)]
        self.workers += [f"any-{i}" for i in range(settings.get("any_workers", 0))]
        self.remote = remote
        self.lines: list[str] = []
        self.cold_start = 0.0  # seconds
        self.url = ""
        # Not pytest's folder: the path of a socket has a limit.
        self.folder = Path(tempfile.mkdtemp(prefix="xgr-t-", dir="/tmp"))
        self.faults = self.folder / "faults"
        self._wrapper = wrapper
        self._said = said
        self._settings: dict[str, Any] = {
            "model_path": model,
            "catalog": catalog,
            "port": 0,
            "prefill_workers": prefill,
            "decode_workers": decode,
            "threads": 1,
            "kv_bytes": 64 << 20,
            **TIMES,
            **settings,
        }

    def __enter__(self) -> Fleet:
        self.faults.mkdir()
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until every worker is usable."""
        started = time.monotonic()
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()]
        path = [ROOT / "tests" / "support", ROOT, ROOT / "kernels"]
        environ = {
            **os.environ,
            "TMPDIR": str(self.folder),
            "FAULTS": str(self.faults),
            "REMOTE": ",".join(self.remote),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
        }
        self._serve = Serve(flags, environ, ("-m", "faulty_serve"), self._wrapper, self.lines, self._said)
        if self._said:
            self.url = f"http://127.0.0.1:{self._settings['port']}"
        else:
            self.url = self._serve.url()
        self.whole()
        self.cold_start = time.monotonic() - started

    @property
    def launcher(self) -> subprocess.Popen[str]:
        """The process that starts and watches the others."""
        return self._serve.process

    def client(self, timeout: float = 60.0) -> XgrClient:
        return XgrClient(self.url, timeout=timeout)

    @property
    def run_folder(self) -> Path | None:
        """Where its sockets are."""
        return next((path.parent for path in self.folder.glob("xgr-*/launcher.pid")), None)

    # --- processes ---

    def process(self, name: str) -> psutil.Process | None:
        """The process of a worker or of the router, while there is one."""
        wanted = f"--name={name}" if name in self.workers else "router"
        for process in self.family():
            with suppress(psutil.Error):
                if wanted in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def family(self) -> list[psutil.Process]:
        return self._serve.family()

    def signal(self, name: str, number: signal.Signals) -> None:
        process = self.process(name)
        assert process is not None, f"{name} does not run"
        process.send_signal(number)

    def wake(self) -> None:
        """Nobody stays stopped."""
        for process in self.family():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)

    def incarnations(self) -> dict[str, str]:
        """Of the workers that are usable."""
        with self.client() as client:
            return {w.worker: w.incarnation or "" for w in client.workers() if w.usable and w.worker}

    def whole(self, replaced: Mapping[str, str] | None = None, seconds: float = PATIENCE) -> None:
        """Wait until every worker is usable, those that are `replaced` as other incarnations than these."""

        def complete() -> bool:
            with suppress(Exception):  # the router itself may be away
                found = self.incarnations()
                new = all(found.get(name) != old for name, old in (replaced or {}).items())
                return set(found) == set(self.workers) and new
            return False

        until(complete, f"all of {self.workers} usable", seconds, every=0.05)

    def standby_ready(self, names: Sequence[str], times: int = 1, seconds: float = PATIENCE) -> None:
        """Wait until each of these has waited for a place that many times."""

        def said() -> bool:
            lines = list(self.lines)
            return all(sum(f" {name} is ready " in line for line in lines) >= times for name in names)

        until(said, f"{', '.join(names)} ready {times} times", seconds, every=0.05)

    # --- faults ---

    def break_(self, name: str, fault: Fault) -> None:
        """Let a worker fail that way, from the next time it can."""
        FaultFile(self.faults / name).write(fault)

    def of(self, role: str) -> list[str]:
        """The workers of that role."""
        return [name for name in self.workers if name.startswith(role)]

    def strike(self, role: str, point: str, number: int = 0, seconds: float = 30.0) -> str:
        """Who of that role comes to `point` first sends itself this signal, or hangs; its name."""
        self.arm(role, point, number)
        return self.struck(seconds)

    def arm(self, role: str, point: str, number: int = 0) -> None:
        """As `strike`, but does not wait for it."""
        (self.faults / BOLT).touch()
        for name in self.of(role):
            self.break_(name, Fault("strike", point=point, signal=number))

    def struck(self, seconds: float = 30.0) -> str:
        """Wait until one of the armed workers was struck."""
        file = until(
            lambda: next(self.faults.glob(f"*{STRUCK}"), None), "a worker struck", seconds, every=0.001
        )
        assert file is not None
        return file.stem

    def hold(self, name: str, direction: Direction) -> None:
        """Nothing arrives in this direction of a remote worker's links; `mend` delivers it late."""
        assert name in self.remote, f"{name} is no remote worker"
        (self.faults / f"{name}.held").write_text(direction)

    def mend(self) -> None:
        """Remove all faults; whoever hangs goes on."""
        for file in self.faults.iterdir():
            file.unlink(missing_ok=True)

    # --- the end ---

    def end(self, seconds: float = 60.0) -> int:
        """The exit code of the deployment, which was asked to stop."""
        return self._serve.end(seconds)

    def close(self) -> None:
        """Kill whatever is left."""
        if hasattr(self, "_serve"):
            self._serve.close()
        shutil.rmtree(self.folder, ignore_errors=True)
