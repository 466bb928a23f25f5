"""Files that are kept: each is there whole, or as it was before, whatever ends its writer or the machine.

Content goes into a hidden file of the same folder, to the disk, and only then under its name.
"""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xgr_runtime.errors import ConfigError, StartupError

_REMEDY = "name a file in a folder that you may write to"


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
    # It ends as the file does: whoever clears a folder of such files clears what a killed writer left, too.
    hidden = target.with_name(f".{secrets.token_hex(8)}.{target.name}")
    try:
        replaced = not new and target.exists()
        if replaced and not target.is_file():
            raise ConfigError(f"{target} cannot be written, it is no ordinary file: name another")
        hidden.touch(0o600 if secret else 0o666, exist_ok=False)
        try:
            if replaced and not secret:
                shutil.copymode(target, hidden)
            with hidden.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if new:
                target.hardlink_to(hidden)  # unlike a rename, it never takes the place of another
            else:
                hidden.replace(target)
        finally:
            hidden.unlink(missing_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} is there already: choose another name, or move it away") from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path} cannot be written ({reason}): make room there, or {_REMEDY}") from error


def open_ordinary(path: Path) -> BinaryIO:
    """A file for reading. Raises OSError; ValueError for a pipe or a device, which may never end."""
    # Without O_NONBLOCK a pipe is opened only once somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no ordinary file")
    return os.fdopen(descriptor, "rb")


def is_missing(path: Path) -> bool:
    """A link that leads nowhere is a mistake, and not a file that nobody has made."""
    return not path.exists() and not path.is_symlink()


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, as `json.loads` wants a hook of pairs. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        name = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"an object has {name!r:.80} twice: keep one of the two")
    return found


def read_object(path: Path, kind: type[StartupError], strict: bool = False) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no such file. Raises an error of that kind otherwise.

    strict: a name that is there twice is an error.
    """
    if is_missing(path):
        return {}
    try:
        with open_ordinary(path) as file:
            text = file.read().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=distinct if strict else None)
    except (OSError, ValueError, RecursionError) as error:
        raise kind(f"{path} cannot be read as JSON ({error}): correct or remove it") from error
    if not isinstance(value, dict):
        raise kind(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def check_writable(path: Path, setting: str) -> None:
    """Before the work whose result `path` shall hold. Raises `ConfigError` that names `setting`."""
    folder = path.parent
    special = path.exists() and not path.is_file()
    if special or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{setting} {path} cannot be written: {_REMEDY}")
