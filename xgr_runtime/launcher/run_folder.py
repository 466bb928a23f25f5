"""The private folder of one running launcher: its sockets, gone when it ends.

A launcher that was killed cannot clean up, so each one first removes the folders of launchers that are dead.
Temporary folders are also cleaned by others, who are asked to leave this one alone. What they take all the
same is made again by whoever made it: the folder by the launcher, a socket by the worker that listens there.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xgr_runtime.config.values import is_plain
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary
from xgr_runtime.transport.addresses import SOCKET_PATH

log = logging.getLogger(__name__)

PREFIX = "xgr-"
PID_FILE = "launcher.pid"
CACHE = "cache"  # the folder in it that takes the place of a cache folder where there is none
MPS = "mps"  # that of a daemon of ours, see `launcher.mps`
_ASIDE = ".aside-"
LONGEST_SOCKET = f"/{PREFIX}12345678/prefill-255.data"  # below the parent


class RunFolder:
    """A folder of ours (mode 0700), held by locks that the kernel drops with this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = contextlib.ExitStack()

    def hold(self) -> None:
        """Lock the folder, which tools that clean by age then leave alone, and a pid file in it.

        Raises OSError.
        """
        self.let_go()  # or we would wait for ourselves
        with contextlib.ExitStack() as held:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            with contextlib.suppress(OSError):  # a file system without locks on folders
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a cleaner's is not waited for
            held.enter_context(_pid_file(self.path))
            self._held = held.pop_all()

    def let_go(self) -> None:
        """Give the locks back."""
        self._held.close()

    def keep(self) -> None:
        """Make again what somebody has removed. Raises `ConfigError` where that cannot be."""
        try:
            if self._is_whole():
                self._make_way()
                return
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_ours():
                raise PermissionError("somebody else has put something there")
            self.path.chmod(0o700)
            self._make_way()
            self.hold()
        except OSError as error:
            raise ConfigError(
                f"the folder for sockets {self.path} was removed and cannot be made again "
                f"({error.strerror or error}): set TMPDIR to a folder that nobody cleans, and start again"
            ) from error
        log.error(
            "the folder for sockets %s was cleaned and is made again: "
            "set TMPDIR to a folder that nobody cleans",
            self.path,
        )

    def _is_whole(self) -> bool:
        try:
            private = self._is_ours() and stat.S_IMODE(self.path.lstat().st_mode) == 0o700
            return private and stat.S_ISREG((self.path / PID_FILE).lstat().st_mode)
        except FileNotFoundError:
            return False

    def _make_way(self) -> None:
        """Rename folders in it, which nobody of us made: unlike files, sockets cannot take their places.

        They are not removed before we end, for something else may be mounted there. Raises OSError.
        """
        with os.scandir(self.path) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for name in found:
            if name not in (CACHE, MPS) and not name.startswith(_ASIDE):
                log.error("somebody made the folder %s: it is renamed", self.path / name)
                (self.path / name).rename(self.path / f"{_ASIDE}{secrets.token_hex(4)}")

    def _is_ours(self) -> bool:
        """Its name was free for a moment: whoever took it would hold what processes of ours connect to."""
        found = self.path.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


@contextlib.contextmanager
def run_folder(parent: Path | None = None) -> Iterator[RunFolder]:
    """A new folder below `parent`, the system's temporary folder by default.

    Raises `ConfigError` where none can be made.
    """
    try:
        parent = parent or Path(tempfile.gettempdir())
        _check_sockets(parent)
        sweep(parent)
        folder = RunFolder(Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)))
    except OSError as error:
        raise _no_folder(parent, error) from error
    try:
        try:
            folder.hold()
        except OSError as error:
            raise _no_folder(parent, error) from error
        yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.let_go()


def _check_sockets(parent: Path) -> None:
    """Raises `ConfigError` for a parent whose path ends in no address of a socket."""
    most = SOCKET_PATH - len(LONGEST_SOCKET)
    if not is_plain(str(parent)):
        raise ConfigError(
            f"the temporary folder {str(parent)!r} holds control characters, or bytes that are no UTF-8: "
            "set TMPDIR to another"
        )
    if len(os.fsencode(parent)) > most:
        raise ConfigError(
            f"the temporary folder {parent} has a path too long for sockets: set TMPDIR to one of at most "
            f"{most} bytes, such as /tmp"
        )


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
def _pid_file(folder: Path) -> Iterator[None]:
    """The folder's pid file, locked: the kernel drops the lock with the process, and pids come again."""
    hidden = folder / f".{PID_FILE}"
    hidden.unlink(missing_ok=True)
    with hidden.open("x") as stream:
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
        with open_ordinary(folder / PID_FILE) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError):  # locked, without a pid file (yet), or just removed
        return False
    return True
