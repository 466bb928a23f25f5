"""What the launcher does before it starts workers: one cache folder for all, and in it every kernel compiled.

Workers that compile the same side by side would take several times as long.
"""

import logging
import time
from pathlib import Path
from typing import Any

from xgr_runtime.cache.folder import NONE, cache_folder
from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.checkpoint import saved_dtype
from xgr_runtime.config import KernelsConfig, ServeConfig, to_argv
from xgr_runtime.config.toolchain import check_toolchain
from xgr_runtime.launcher.child import Child, ChildFailed
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.run_folder import CACHE
from xgr_runtime.launcher.supervisor import PULSE, StopRequest

log = logging.getLogger(__name__)

PATIENCE = 900.0  # seconds; workers then do it by themselves


def cache_for_all(config: ServeConfig, run_folder: Path) -> str:
    """What `--cache-folder` shall be for every worker of this launcher. Raises `ConfigError`.

    Where nothing can be kept for the next start, kernels are at least compiled once for all of them.
    """
    found = None if config.cache_folder == NONE else cache_folder(config.cache_folder)
    return str(found or run_folder / CACHE)


def check_tools(config: ServeConfig) -> None:
    """Whether a GPU's kernels are there, or can be compiled; a CPU's need no tool. Raises `ConfigError`.

    `config` names the folder that `cache_for_all` chose.
    """
    if config.device != "cpu":
        check_toolchain(config.device, first=KernelFolder(Path(config.cache_folder), "gpu").fresh)


def starting(config: ServeConfig) -> str:
    """What a command says before a start whose log it does not show. Raises `ConfigError`."""
    line = "Starting router, prefill worker and decode worker ..."
    found = None if config.cache_folder == NONE else cache_folder(config.cache_folder)
    return f"{line} (kernels compile first: a minute or two)" if _missing(config, found) else line


def _missing(config: ServeConfig, folder: Path | None) -> Any:
    """The model's number type where its kernels are not in the cache folder yet; None where all are.

    On a GPU none compile ahead.
    """
    if config.device != "cpu" or config.dtype == "float16":  # which workers refuse on a CPU
        return None
    dtype: Any = (
        saved_dtype(Path(config.model_path), config.device) if config.dtype == "auto" else config.dtype
    )
    return None if folder is not None and KernelFolder(folder).ready(dtype) else dtype


def compile_first(config: ServeConfig, stop: StopRequest) -> None:
    """Have the kernels compiled in a process of its own if one is missing, or until `stop`.

    `config` names the folder that `cache_for_all` chose. What goes wrong there is logged; the workers then
    say by themselves what they cannot do.
    """
    dtype = _missing(config, Path(config.cache_folder))
    if dtype is None:
        return
    own = KernelsConfig(cache_folder=config.cache_folder, dtype=dtype, log_level=config.log_level)
    child = Child(Program("kernels", "xgr_runtime.model.ready_kernels", to_argv(own)))
    child.start()
    until = time.monotonic() + PATIENCE
    try:
        while child.check_ready() is None and not stop.drain and time.monotonic() < until:
            time.sleep(PULSE)
    except ChildFailed as error:
        log.warning("kernels could not be compiled ahead: %s", error)
    finally:
        child.kill()
        child.close()
