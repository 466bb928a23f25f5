"""Keys of the links between machines: the file with a process's own key, and the list of those it talks to.

Both files hold lines of a name and a key: the first one line with a secret key, the second one with a public
key for each process of the deployment.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary, write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_CHARACTERS = 40  # of a key of 32 bytes
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Keyring:
    """A process's own key, and the public keys of all it talks to. Keys are Z85 text, 40 characters."""

    name: str  # under which others list this process
    secret: str = field(repr=False)
    allowed: Mapping[str, str]  # name -> public key

    def key_of(self, peer: str) -> str:
        """The public key of the process of that name. Raises `ConfigError`."""
        if peer not in self.allowed:
            raise ConfigError(f"no key of {peer} is known: add its line to the file of --curve-allow")
        return self.allowed[peer]


def read_keyring(key_file: str, allow_file: str) -> Keyring | None:
    """The keys of this process; None without any. Raises `ConfigError` for files that cannot be trusted."""
    if not key_file and not allow_file:
        return None
    if not key_file or not allow_file:
        raise ConfigError("--curve-key and --curve-allow go together: make both with `xgr keys new`")
    name, secret = read_key(Path(key_file))
    allowed = read_allowed(Path(allow_file))
    if not allowed:
        raise ConfigError(f"--curve-allow {allow_file} lists nobody: add the public keys of all others")
    if secret in allowed.values():
        raise ConfigError(f"--curve-allow {allow_file} lists a secret key: make another, list its public one")
    return Keyring(name, secret, allowed)


def read_key(path: Path) -> tuple[str, str]:
    """Name and secret key. Raises `ConfigError`."""
    entries = _entries(path, _OTHERS, "chmod 600")
    if len(entries) != 1:
        raise ConfigError(f"{path} holds {len(entries)} keys and must hold one: make it with `xgr keys new`")
    return next(iter(entries.items()))


def read_allowed(path: Path) -> dict[str, str]:
    """Public keys by name. Raises `ConfigError`."""
    return _entries(path, _OTHERS_WRITE, "chmod go-w")


def check_name(name: str) -> None:
    """Raises `ConfigError` for what cannot be the name of a process's key."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name: up to 64 letters, digits, dots, dashes and underscores")


def write_key(folder: Path, name: str, secret: str) -> Path:
    """The new file NAME.key, readable by its owner alone. Raises `ConfigError`, also if it is there already.

    It has its name only once all of it is on the disk.
    """
    path = folder / f"{name}.key"
    content = f"# Secret: made by `xgr keys new`, for --curve-key.\n{name} {secret}\n"
    write_whole(path, content.encode(), secret=True, new=True)
    return path


def is_key(text: str) -> bool:
    """Whether this is Z85 of 32 bytes."""
    if len(text) != _CHARACTERS or not set(text) <= set(_Z85):
        return False
    return all(_number(text[start : start + 5]) < 1 << 32 for start in range(0, _CHARACTERS, 5))


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * len(_Z85) + _Z85.index(digit)
    return number


def _entries(path: Path, forbidden: int, remedy: str) -> dict[str, str]:
    """Key by name; a line that begins with # says nothing. Errors show no line: it may be a secret."""
    entries: dict[str, str] = {}
    for number, line in enumerate(_text(path, forbidden, remedy).splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not is_key(words[1]):
            raise ConfigError(f"{path}, line {number}: not a name and a key of 40 characters")
        if words[0] in entries or words[1] in entries.values():
            raise ConfigError(f"{path}, line {number}: its name or key is there twice, leave one out")
        entries[words[0]] = words[1]
    return entries


def _text(path: Path, forbidden: int, remedy: str) -> str:
    """What is in the file, if nobody else could have put it there or, with a secret, can read it."""
    try:
        with open_ordinary(path) as file:
            found, raw = os.fstat(file.fileno()), file.read()
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}, name one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user: chown it to the one that runs this process")
    if found.st_mode & forbidden:
        raise ConfigError(f"others may use {path}, run: {remedy} {path}")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no file of keys: make it with `xgr keys new`") from None
