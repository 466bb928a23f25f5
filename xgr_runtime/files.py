"""Files that are kept: each is there whole, or as it was before, whatever ends its writer or the machine.

Content goes into a hidden file of the same folder, to the disk, and only then under its name.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from xgr_runtime.errors import ConfigError

_REMEDIES = {
    errno.ENOSPC: "free space on that disk or name another folder",
    errno.EDQUOT: "free space within your quota or name another folder",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
    errno.EACCES: "name a file in a folder that you may write to",
    errno.EPERM: "name a file in a folder that you may write to",
    errno.EROFS: "name a file in a folder that you may write to",
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "make its folder first",
}
_PRIVATE = 0o600


def write_whole(path: Path, content: bytes, secret: bool = False, new: bool = False) -> None:
    """Put `content` under that name, all of it or nothing. Raises as `writing_whole` does."""
    with writing_whole(path, secret, new) as stream:
        stream.write(content)


@contextlib.contextmanager
def writing_whole(path: Path, secret: bool = False, new: bool = False) -> Iterator[BinaryIO]:
    """A stream whose content gets that name once the block has ended well; nothing is left when it has not.

    A file that is replaced keeps its mode; a `secret` one is for this user alone; a `new` one replaces
    nothing. Raises `ConfigError` that names the path and what to change; any OSError of the block counts as
    one of this file.
    """
    target = path if new else Path(os.path.realpath(path))  # a link stays one
    try:
        replaced = None if new else _mode_of(target)
        _sweep(target)
        temporary, stream = _create(target, _PRIVATE if secret else 0o666)
        try:
            with stream:
                if replaced is not None and not secret:
                    os.fchmod(stream.fileno(), replaced)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if new:
                    target.hardlink_to(temporary)  # unlike a rename, it never takes the place of another
                    temporary.unlink()
                else:
                    temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: choose another name, or move it away") from None
    except OSError as error:
        _refuse(path, error)


def open_ordinary(path: Path) -> BinaryIO:
    """A file for reading. Raises OSError; ValueError for a pipe or a device, which may never end."""
    # Without O_NONBLOCK a pipe is opened only once somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no ordinary file")
    return os.fdopen(descriptor, "rb")


def check_writable(path: Path, setting: str) -> None:
    """Before the work whose result `path` shall hold. Raises `ConfigError` that names `setting`."""
    folder = path.parent
    special = path.exists() and not path.is_file()
    if special or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{setting} {path} cannot be written: name a file in a folder that you may write to"
        )


def move_whole(made: Path, target: Path) -> None:
    """Give a finished folder its name, with all that is in it on the disk before. Raises OSError."""
    for folder, _, names in os.walk(made):
        for name in names:
            _sync(Path(folder, name))
        _sync_folder(Path(folder))
    made.rename(target)
    _sync_folder(target.parent)


def _mode_of(target: Path) -> int | None:
    """Of the file that is replaced, if there is one. Raises `ConfigError` where that is something else."""
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise ConfigError(f"{target} cannot be written, it is no ordinary file: name another")
    return stat.S_IMODE(found)


def _create(target: Path, mode: int) -> tuple[Path, BinaryIO]:
    """The hidden file, locked while its writer lives, so that nobody sweeps it."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        stream = os.fdopen(fd, "w+b")
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept either
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return temporary, stream
        stream.close()  # swept before it was locked


def _sweep(target: Path) -> None:
    """Remove what killed writers of this file left: the kernel has dropped their locks."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise


def _refuse(path: Path, error: OSError) -> NoReturn:
    remedy = _REMEDIES.get(error.errno or 0, "name another file")
    raise ConfigError(f"{path} cannot be written ({error.strerror or error}): {remedy}") from error
