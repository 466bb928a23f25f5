"""The part of the cache folder that holds checkpoints which adapters were merged into, one folder each.

Its name is made from the content of all that goes into it, so whoever merges again finds it, and every
backend loads it like any other checkpoint. It is there whole or not at all.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xgr_runtime.cache.unused import IN_USE, remove_unused
from xgr_runtime.checkpoint.adapter import Adapter, find_adapter
from xgr_runtime.checkpoint.config import dtype_of, merge_by_hand
from xgr_runtime.checkpoint.described import lay_out, small_files
from xgr_runtime.checkpoint.merging import VERSION, Merger, read_merger
from xgr_runtime.checkpoint.names import ADAPTER, ADAPTER_CONFIG, SINGLE
from xgr_runtime.checkpoint.weights import digest_of, sampled_files, times_of, weight_files, weights_hash
from xgr_runtime.errors import ModelError

log = logging.getLogger(__name__)

FOLDER = "merged"
KEPT = 4  # those used last stay, until there are more of them
KEPT_BYTES = 64 << 30  # or until they take more together
_LOCK = "lock"  # held by whoever merges or removes
_PARTIAL = ".partial-"
_SPARE = 1 << 30  # bytes that a disk keeps


@contextlib.contextmanager
def merged_checkpoint(
    folder: Path, base: str, cache: Path | None, dtype: str = "auto", device: str = "cpu"
) -> Iterator[Path]:
    """The folder to load `folder` from: itself, or one below `cache` if it holds an adapter.

    `base` as in `find_adapter`; `dtype` and `device` as in a worker's settings. It stays as long as the block
    lasts, and as a rule longer. Raises ModelError.
    """
    adapter = find_adapter(folder, base)
    if adapter is None:
        yield folder
        return
    if cache is None:
        raise ModelError(
            f"{adapter.folder}: an adapter is merged into the cache folder, and there is none: name one by "
            f"--cache-folder. {merge_by_hand(adapter.folder)}"
        )
    merger = read_merger(adapter)
    dtype = dtype_of(merger.config, device) if dtype == "auto" else dtype
    with contextlib.ExitStack() as held:
        try:
            path = held.enter_context(_kept(merger, cache / FOLDER, dtype))
        except OSError as error:
            raise ModelError(
                f"{adapter.folder}: the adapter cannot be merged in {cache} ({error.strerror or error}): "
                "make room there, or name another folder by --cache-folder"
            ) from error
        yield path


@contextlib.contextmanager
def _kept(merger: Merger, room: Path, dtype: str) -> Iterator[Path]:
    """Raises OSError, ModelError."""
    room.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = room / key_of(merger.adapter, dtype)
    with contextlib.ExitStack() as held:
        with (room / _LOCK).open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / SINGLE).is_file():
                _merge(merger, path, dtype)
            os.utime(path)
            used = held.enter_context((path / IN_USE).open("w"))
            with contextlib.suppress(OSError):
                fcntl.flock(used, fcntl.LOCK_SH)
            others = [other for other in room.iterdir() if other.is_dir() and other != path]
            remove_unused(others, KEPT, KEPT_BYTES, "a merged checkpoint that was not used for long")
        yield path


def key_of(adapter: Adapter, dtype: str) -> str:
    """Names the content of the adapter, of its base and of what goes with them, and how they are merged."""
    weights = [adapter.folder / ADAPTER]
    files = [
        file for found in small_files(adapter) for file in ([found] if found.is_file() else found.glob("*"))
    ]
    digest = digest_of([adapter.folder / ADAPTER_CONFIG, *weights, *files])
    parts = [VERSION, dtype, weights_hash(adapter.base, weight_files(adapter.base))]
    for part in (*parts, *sampled_files(adapter.base), *times_of(weights)):
        digest.update(f"\n{part}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _merge(merger: Merger, path: Path, dtype: str) -> None:
    """Raises OSError, ModelError."""
    room, adapter = path.parent, merger.adapter
    for left in room.glob(f"{_PARTIAL}*"):  # by whoever was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    needed, free = merger.size(dtype), shutil.disk_usage(room).free
    if needed + _SPARE > free:
        raise ModelError(
            f"{adapter.folder}: merging takes {needed >> 20} MiB in {room}, where {free >> 20} MiB are free, "
            f"of which {_SPARE >> 20} stay so: make room there, or name another folder by --cache-folder"
        )
    began = time.monotonic()
    log.info("merging the adapter %s into %s, in %s", adapter.folder, adapter.base, dtype)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=room))
    try:
        lay_out(merger, partial, dtype)
        merger.write(partial, dtype)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    log.info("merged in %.1f s: %s, %d MiB", time.monotonic() - began, path, needed >> 20)
