"""The private folder of one running launcher: its sockets and its catalog file, gone when it ends.

A launcher that was killed cannot clean up, so each one first removes the folders of launchers that are dead.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "xgr-"
PID_FILE = "launcher.pid"


@contextlib.contextmanager
def run_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder (mode 0700) below `parent`, the system's temporary folder by default.

    Raises `ConfigError` where none can be made.
    """
    try:
        parent = parent or Path(tempfile.gettempdir())
        sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise _no_folder(parent, error) from error
    try:
        with contextlib.ExitStack() as owned:
            try:
                owned.enter_context(_owned(folder))
            except OSError as error:
                raise _no_folder(parent, error) from error
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_folder(parent: Path | None, error: OSError) -> ConfigError:
    where = f" in {parent}" if parent else ""
    return ConfigError(
        f"no folder for sockets can be made{where} ({error.strerror or error}): "
        "free space there, or set TMPDIR to a folder that you may write to"
    )


def sweep(parent: Path) -> None:
    """Remove our folders below `parent` whose launcher is dead."""
    for folder in parent.glob(f"{PREFIX}*"):
        if _is_stale(folder):
            log.info("removing %s, its launcher is dead", folder)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder's pid file, locked: the kernel drops the lock with the process, and pids come again."""
    hidden = folder / f".{PID_FILE}"
    with hidden.open("w") as stream:
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        hidden.rename(folder / PID_FILE)  # under its name it is always locked while we live
        yield


def _is_stale(folder: Path) -> bool:
    """Whether a launcher of this user made the folder and no longer holds its pid file."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        with (folder / PID_FILE).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, without a pid file (yet), or just removed
        return False
    return True
