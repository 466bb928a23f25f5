"""A rival as a process of its own interpreter: started, asked, ended, whatever it does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

SCRIPTS = Path(__file__).resolve().parent / "rival"


class NotMeasuredError(Exception):
    """Why there is no figure, in words for the table."""


@dataclass
class RivalProcess:
    """`script` of the folder rival/ in the interpreter `python`; its output goes to `log`.

    Raises NotMeasuredError, from `start` and `ask`, with what it said or did instead.
    """

    script: str
    python: str
    settings: Mapping[str, Any]
    log: IO[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _unread: bytes = b""

    def start(self, patience: float) -> dict[str, Any]:
        """Its facts, once it is ready."""
        command = [self.python, str(SCRIPTS / self.script), json.dumps(dict(self.settings))]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env={**os.environ, **self.environ},
            )
        except OSError as error:
            raise NotMeasuredError(f"{self.python} does not run: {error.strerror}") from None
        facts: dict[str, Any] = self._read(patience)["ready"]
        return facts

    def ask(self, prompts: list[list[int]], width: int, at_a_time: int, patience: float) -> dict[str, Any]:
        """`seconds` for all prompts, and the `beams` of each, as (SID, score), best first.

        `overhead`, where it is known: seconds of each request outside of the model's forwards.
        """
        if self._process is None:
            raise NotMeasuredError("it was ended, because it did not answer")
        assert self._process.stdin
        question = {"prompts": prompts, "width": width, "at_a_time": at_a_time}
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise NotMeasuredError("it ended") from None
        return self._read(patience)

    def close(self, patience: float = 30.0) -> None:
        """The end of its stdin asks it to leave; then it is killed, with all that it started."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            assert self._process.stdin
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _read(self, patience: float) -> dict[str, Any]:
        """The next line, as the object that it holds."""
        assert self._process and self._process.stdout
        until, out = time.monotonic() + patience, self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close(patience=0)
                raise NotMeasuredError(f"no answer within {patience:.0f} s")
            part = os.read(out, 1 << 20)
            if not part:
                raise NotMeasuredError(f"it ended, with status {self._process.wait()}: see {self.log.name}")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise NotMeasuredError(said["error"].splitlines()[0])
        return said
