"""Folders that are kept for a while: those used last stay, and what a process uses."""

import contextlib
import fcntl
import logging
import shutil
import stat
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

log = logging.getLogger(__name__)

IN_USE = "in-use"  # a file in each of them, locked by every process that uses it


def remove_unused(folders: Iterable[Path], kept: int, kept_bytes: int, what: str) -> None:
    """Of the folders the `kept` used last stay, or fewer if they take more than `kept_bytes` together.

    What a process uses stays, too. `what`: they are, for the log.
    """
    found = sorted(folders, key=_used, reverse=True)
    fit = sum(size <= kept_bytes for size in accumulate(map(_bytes, found[:kept])))
    for folder in found[fit:]:
        with contextlib.suppress(OSError), (folder / IN_USE).open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            log.info("removed %s, %s", folder, what)


def _bytes(folder: Path) -> int:
    """Of all files below it, as far as they are still there."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
