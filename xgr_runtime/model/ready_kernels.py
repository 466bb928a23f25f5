"""`python -m xgr_runtime.model.ready_kernels`: compiles all kernels once, so that workers find them ready.

A launcher runs it before its workers where something is missing; workers do the same by themselves.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from xgr_kernels.cpu.compiled import keep_compiled_in
from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.config import KernelsConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.base import DTYPES
from xgr_runtime.process.lifecycle import Lifecycle, main

log = logging.getLogger(__name__)


def body(config: KernelsConfig, lifecycle: Lifecycle) -> None:
    ready_kernels(usable_cache(config.cache_folder), config.dtype, lambda: lifecycle.stopping)
    lifecycle.ready({})


def usable_cache(setting: str) -> Path | None:
    """As `cache_folder`, but one that cannot be used is said, and no reason not to start. Call it once."""
    try:
        return cache_folder(setting)
    except ConfigError as error:
        log.warning("nothing can be kept for later starts, so kernels compile at every start: %s", error)
        return None


def ready_kernels(cache: Path | None, dtype: str, stopping: Callable[[], bool] = bool) -> None:
    """Let kernels be read from the cache folder, and put them there if any is missing.

    Where none can be kept, they compile when they are first called. `stopping` ends the wait for another
    process that compiles them.
    """
    try:
        if cache is not None:
            _ready_in(KernelFolder(cache), dtype, stopping)
    except OSError as error:
        log.warning("kernels compile at every start: %s", error)


def _ready_in(folder: KernelFolder, dtype: str, stopping: Callable[[], bool]) -> None:
    """Raises OSError."""
    folder.use()
    keep_compiled_in(folder.path)
    if folder.ready(dtype):
        return
    with folder.compiling(stopping):
        if folder.ready(dtype) or stopping():
            return
        from xgr_kernels.every import compile_all  # not above: it takes a second, which a warm start has not

        log.info("compiling kernels for this processor, once: it takes a minute or two")
        started = time.monotonic()
        compile_all(DTYPES[dtype])
        folder.complete(dtype)
        log.info(
            "kernels were compiled in %.0f s and are kept in %s", time.monotonic() - started, folder.path
        )


if __name__ == "__main__":
    sys.exit(main(KernelsConfig, body, "ready_kernels"))
