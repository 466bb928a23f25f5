"""Workers that a file names: `{"prefill": [...], "decode": [...]}`. Another is renamed over it."""

import os
from pathlib import Path

import msgspec

from xgr_runtime.discovery import WorkerAddress, check_twice
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary

MOST_BYTES = 1 << 20
_SHAPE = 'write {"prefill": [addresses], "decode": [addresses]}'


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds. Both lists have to be there, so that half a file is no file."""

    prefill: list[str]
    decode: list[str]


class FileList:
    """See `Source`. It is read whole each time: it is short, and times may tell nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return f"--workers-file {self._path}"

    def look(self) -> list[WorkerAddress]:
        """See `Source.look`."""
        named = self._named()
        workers = [WorkerAddress("prefill", address) for address in named.prefill]
        workers += [WorkerAddress("decode", address) for address in named.decode]
        if not workers:  # whoever wrote it may have lost its own source
            raise ConfigError(
                f"{self} names no worker: name some, or remove the last ones by DELETE /workers"
            )
        check_twice(workers, str(self))
        return workers

    def _named(self) -> _Named:
        try:
            with open_ordinary(self._path) as stream:
                self._check_owner(os.fstat(stream.fileno()))
                content = stream.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ConfigError(f"{self} has more than {MOST_BYTES} bytes: name fewer workers")
            return msgspec.json.decode(content, type=_Named)
        except OSError as error:
            raise ConfigError(f"{self} cannot be read ({error.strerror}): {_SHAPE}") from None
        except (
            msgspec.MsgspecError,
            ValueError,
        ) as error:  # the latter of what is no ordinary file, or no text
            raise ConfigError(f"{self} is no list of workers ({error}): {_SHAPE}") from None

    def _check_owner(self, found: os.stat_result) -> None:
        """Whoever can write to it decides where prompts go."""
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{self} belongs to another user: chown it to the one that runs the router")
        if found.st_mode & 0o022:
            raise ConfigError(f"others may write to {self}, run: chmod go-w {self._path}")
