"""What workers import once they know their checkpoint, ahead: by the template that they are forked from.

Here nothing may be computed and no GPU asked. What cannot be imported is no error: the worker says so, with
what to change.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from numba.core.registry import cpu_target

from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.checkpoint import saved_dtype
from xgr_runtime.config import ImportsConfig, parse
from xgr_runtime.model.backends.saved import is_saved
from xgr_runtime.model.choice import why_not_sglang
from xgr_runtime.model.kept_checks import KeptChecks

# torch then counts GPUs without a call that a fork would not survive.
_COUNT_WITHOUT_CUDA = "PYTORCH_NVML_BASED_CUDA_CHECK"


def import_ahead(argv: Sequence[str]) -> None:
    """Import what a worker with these settings will. `argv` are those of an `ImportsConfig`.

    SGLang asks a GPU what it can as it is imported: for one, only what asks nothing is imported.
    """
    config = parse(ImportsConfig, argv, {})
    with _no_cuda(), contextlib.suppress(Exception):  # of a library, or of ours that refuses a checkpoint
        cpu_target.target_context.refresh()  # imports how numba makes code, which takes it half a second
        cpu_target.typing_context.refresh()
        if config.model_backend == "simulated":
            importlib.import_module("xgr_runtime.model.backends.simulated")
            return
        sglang = config.model_backend != "transformers" and not why_not_sglang(
            config.sglang_any_version, config.device
        )
        if sglang and config.device == "cpu":
            importlib.import_module("xgr_runtime.model.sglang.backend")
            importlib.import_module("xgr_runtime.model.sglang.startup").import_ahead()
        elif sglang or config.shared_weights or not _needs_no_library(config):
            importlib.import_module("xgr_runtime.model.backends.transformers")
        else:
            return
        _import_family(Path(config.model_path))


def _needs_no_library(config: ImportsConfig) -> bool:
    """Whether an earlier start has checked the model in layers of our own."""
    folder = Path(config.model_path)
    dtype = saved_dtype(folder, config.device) if config.dtype == "auto" else config.dtype
    return is_saved(folder, dtype, config.device, KeptChecks(cache_folder(config.cache_folder)))


def _import_family(folder: Path) -> None:
    """transformers imports a family's code when its class is first named."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@contextlib.contextmanager
def _no_cuda() -> Iterator[None]:
    before = os.environ.get(_COUNT_WITHOUT_CUDA)
    os.environ[_COUNT_WITHOUT_CUDA] = "1"
    try:
        yield
    finally:
        del os.environ[_COUNT_WITHOUT_CUDA]
        if before is not None:
            os.environ[_COUNT_WITHOUT_CUDA] = before
