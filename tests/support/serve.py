"""`xgr serve` as a user runs it: a process of its own, what it says, and the processes that it starts."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from until import PATIENCE, until

SERVE = ("-m", "xgr_runtime.cli", "serve")


def hear_ctrl_c() -> None:
    """As in a terminal: what a script runs in its background is born deaf to it, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Serve:
    """Started at once. `lines` take what it prints, unless a file in the place of `said` does."""

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        python: Sequence[str] = SERVE,
        wrapper: Sequence[str] = (),
        lines: list[str] | None = None,
        said: Path | None = None,
    ) -> None:
        """`python`: how the interpreter is told what to run; `wrapper`: a command in front of it."""
        self.lines: list[str] = [] if lines is None else lines
        self._before = len(self.lines)
        output = subprocess.PIPE if said is None else said.open("w")
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, *python, *argv],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environ),
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )
        if not isinstance(output, int):
            output.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def url(self) -> str:
        """Where it serves, once it says that it is ready."""
        return until(self._where, "ready", PATIENCE, every=0.05)

    def running(self) -> None:
        """An AssertionError with what it said if it has ended."""
        code = self.process.poll()
        assert code is None, f"exit code {code}:\n" + "".join(self.lines)

    def family(self) -> list[psutil.Process]:
        """The processes below it, none once it is gone."""
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def worker(self, module: str) -> psutil.Process:
        return next(p for p in self.family() if module in p.cmdline())

    def end(self, seconds: float = 60.0) -> int:
        """Its exit code; it was asked to stop, or cannot start."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Kill whatever is left."""
        for process in [self.process, *self.family()]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait(10)

    def _where(self) -> str:
        self.running()
        for line in self.lines[self._before :]:
            if match := re.search(r"ready at (http://\S+)", line):
                return match.group(1)
        return ""

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
