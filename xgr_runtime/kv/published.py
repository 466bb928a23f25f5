"""What a prefill worker publishes for the decode worker that shares its memory: one file in the run folder.

A captured graph keeps the address of the KV that it reads, so the reader must know this memory when it
starts, and follow a restarted owner by starting again.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import write_whole
from xgr_runtime.kv.shared_memory import lives
from xgr_runtime.wire.messages import ModelIdentity, Region, SharedKv

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds; a launcher gives up earlier
_LOOK_EVERY = 0.05  # seconds
_KEEP_EVERY = 0.5  # seconds


class SharedTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor inside of a region: contiguous, from byte `offset`."""

    offset: int
    shape: list[int]
    dtype: str  # as torch names it: "bfloat16"


class SharedWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model's weights by name, all in one region."""

    region: Region
    tensors: dict[str, SharedTensor]


class PublishedMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of a prefill worker: its model, where its KV lies, and its weights where they are shared."""

    model: ModelIdentity
    kv: SharedKv
    weights: SharedWeights | None = None


class Publication:
    """What this process has published, kept where it was put: temporary folders are cleaned by others."""

    def __init__(self, path: Path, published: PublishedMemory) -> None:
        """Raises as `publish` does."""
        self._path = path
        self._published = published
        self._next = time.monotonic() + _KEEP_EVERY
        publish(path, published)

    def keep(self) -> None:
        """Publish it again if the file is gone. Call it often."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _KEEP_EVERY
        if not self._path.exists():
            with contextlib.suppress(ConfigError):  # its folder is gone too: tried again
                publish(self._path, self._published)
                log.warning("%s was removed: published there again", self._path)

    def withdraw(self) -> None:
        """Nobody shall find it there any more."""
        self._path.unlink(missing_ok=True)


def publish(path: Path, published: PublishedMemory) -> None:
    """Put it there for others of this user, whole or not at all. Raises `ConfigError`."""
    write_whole(path, msgspec.json.encode(published), secret=True)


def wait_for(path: Path, stopping: Callable[[], bool], patience: float = PATIENCE) -> PublishedMemory:
    """What a living prefill worker has published there. Raises ConfigError when none does in time."""
    until = time.monotonic() + patience
    while (found := _read(path)) is None:
        if stopping() or time.monotonic() >= until:
            raise ConfigError(f"no prefill worker has published its memory in {path}: see its log")
        time.sleep(_LOOK_EVERY)
    return found


def _read(path: Path) -> PublishedMemory | None:
    """None before the first worker has written it, and after the last one that did has died."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=PublishedMemory)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is not what a prefill worker publishes: {error}") from None
    return found if lives(found.kv.generations.owner) else None
