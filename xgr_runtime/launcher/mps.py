"""NVIDIA's MPS, by which processes compute on one GPU at the same time: its daemon, found or started.

A daemon that runs already is used and left alone. One of our own has its pipes and logs in the run folder,
so that nobody else's processes share our GPU's time by it, and ends after the workers.
"""

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.run_folder import MPS

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"  # read by the daemon and by CUDA
VISIBLE = "CUDA_VISIBLE_DEVICES"
USUAL_PIPES = "/tmp/nvidia-mps"  # where CUDA looks if nothing is set
START_SECONDS = 20.0  # until it listens
END_SECONDS = 10.0  # until it has ended: its clients are gone by then
ASK_SECONDS = 5.0  # for an answer
LOOK_EVERY = 0.05  # seconds
AGAIN_AFTER = 10.0  # seconds between starts of a daemon that ends by itself
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Mps:
    """The daemon of a deployment; `environ` is what its workers need to find it."""

    environ: Mapping[str, str] = field(default_factory=dict)

    def keep(self) -> None:
        """See to a daemon that has died."""


def uses_mps(config: ServeConfig) -> bool:
    """Whether the deployment's workers share GPUs by MPS. Raises `ConfigError` where they cannot."""
    if config.sharing != "mps":
        return False
    if config.device == "cpu":
        raise ConfigError("--sharing mps is for a GPU: set --device cuda, or use --sharing turns or none")
    if shutil.which(CONTROL) is None:
        raise ConfigError(
            f"--sharing mps needs {CONTROL}, which comes with NVIDIA's driver and is not on PATH: "
            "install the driver's tools, or use --sharing turns or none"
        )
    return True


@contextlib.contextmanager
def mps(config: ServeConfig, run_folder: Path) -> Iterator[Mps]:
    """A daemon for the block, if the deployment wants one. Raises `ConfigError` where none starts."""
    if not uses_mps(config):
        yield Mps()
        return
    found = os.environ.get(PIPES, USUAL_PIPES)
    if _answers(os.environ):
        log.info("workers share the GPU by the MPS daemon that listens in %s", found)
        yield Mps()
        return
    daemon = OwnDaemon(run_folder / MPS)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


class OwnDaemon(Mps):
    """A daemon that is our child, with its pipes and its logs in `folder`."""

    def __init__(self, folder: Path) -> None:
        where = {PIPES: str(folder), LOGS: str(folder)}
        super().__init__(where | _renumbered(os.environ.get(VISIBLE)))
        self._folder = folder
        self._own = os.environ | where  # which GPUs it may use is the launcher's setting, as it stands
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def start(self) -> None:
        """Start it and wait until it listens. Raises `ConfigError`."""
        process = self._begin()
        until = time.monotonic() + START_SECONDS
        while not _answers(self._own):
            code = process.poll()
            if code is not None or time.monotonic() >= until:
                how = f"did not listen within {START_SECONDS:g} s" if code is None else f"ended with {code}"
                raise ConfigError(
                    f"--sharing mps: {CONTROL} {how}{_last_words(self._folder)}: "
                    f"see that it runs by itself ({CONTROL} -f), or use --sharing turns or none"
                )
            time.sleep(LOOK_EVERY)
        log.info("workers share the GPU by an MPS daemon of our own (pid %d)", process.pid)

    def keep(self) -> None:
        """Start it again where it has ended: workers, who lost their GPU by that, find it as they restart."""
        code = self._process.poll() if self._process else None
        if code is None or time.monotonic() < self._began + AGAIN_AFTER:
            return
        log.error("the MPS daemon ended with %d%s; it is started again", code, _last_words(self._folder))
        with contextlib.suppress(ConfigError):  # it is tried again
            self._begin()

    def end(self) -> None:
        """Ask it to end, and have it ended where it does not."""
        process = self._process
        if process is None:
            return
        if _ask(self._own, "quit"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # its servers are of its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._process = None

    def _begin(self) -> "subprocess.Popen[bytes]":
        """Raises `ConfigError` where the system starts no process."""
        self._began = time.monotonic()
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with (self._folder / "output").open("wb") as output:
                self._process = _spawn([CONTROL, "-f"], self._own, output)
            return self._process
        except OSError as error:
            raise ConfigError(
                f"--sharing mps: {CONTROL} cannot be started ({error.strerror or error}): "
                "see that this user may run it, or use --sharing turns or none"
            ) from error


def _renumbered(visible: str | None) -> dict[str, str]:
    """What workers must see: the daemon numbers the GPUs that it may use from 0, in its order."""
    if visible is None:
        return {}
    count = len([name for name in visible.split(",") if name.strip()])
    return {VISIBLE: ",".join(map(str, range(count)))}


def _spawn(command: list[str], environ: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a group of its own, so that a Ctrl-C reaches the launcher alone; it ends with our thread."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=die_with_parent,  # one call, made ready before the fork
    )


def _answers(environ: Mapping[str, str]) -> bool:
    """Whether a daemon listens where `environ` says."""
    return _ask(environ, "get_server_list")


def _ask(environ: Mapping[str, str], command: str) -> bool:
    """Whether the daemon there took a command."""
    try:
        asked = subprocess.run(
            [CONTROL],
            input=f"{command}\n".encode(),
            env=dict(environ),
            capture_output=True,
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _last_words(folder: Path) -> str:
    """The last line that the daemon wrote, in brackets; nothing if there is none."""
    with contextlib.suppress(OSError):
        lines = (folder / "output").read_text(errors="replace").split("\n")
        return next((f" ({line.strip()[:200]})" for line in reversed(lines) if line.strip()), "")
    return ""
