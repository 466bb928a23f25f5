"""What a launcher starts, and the way that works everywhere: a new interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol, TypeAlias

from xgr_runtime.config import SECRETS, flag
from xgr_runtime.config.variables import variable

BEGIN = "xgr_runtime.process.begin"  # the module that runs a program's


@dataclass(frozen=True)
class Program:
    """How to start a child: as `python -m module argv...` does."""

    name: str
    module: str
    argv: Sequence[str] = ()
    # On top of ours; for what `ps` and a log of this object must not show.
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    template: str = ""  # the name of the one that it may be forked from
    waits: bool = False  # for an order to take another's place: see `xgr_runtime.process.orders`


class Process(Protocol):
    """A process whose end we collect: `subprocess.Popen`, or what a template has forked."""

    @property
    def pid(self) -> int: ...
    @property
    def stderr(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...


Start: TypeAlias = Callable[[Program, int, Sequence[int]], Process]
"""Starts a program with the pipe that hears when it is ready, and with descriptors under their numbers."""


def spawn(program: Program, ready_fd: int, inherits: Sequence[int]) -> Process:
    """Start a new interpreter. Raises OSError."""
    return subprocess.Popen(
        # -P: a folder of the same name in the working directory is not the module that is meant.
        [
            *(sys.executable, "-P", "-m", BEGIN, str(ready_fd), program.module),
            *(*program.argv, f"{flag('ready_fd')}={ready_fd}"),
        ],
        env=_environment(program.environ),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(ready_fd, *inherits),
        # Of its own, but in our session: as we die, the kernel wakes and ends whoever is stopped in
        # it, also a process that did not come far enough to ask for its own end.
        process_group=0,
    )


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours without the launcher's own file and keys: a child gets every setting that it needs by itself."""
    own = {variable(name) for name in ("config", *SECRETS)}
    ours = {name: value for name, value in os.environ.items() if name not in own}
    return ours | dict(extra)
