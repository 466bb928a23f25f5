"""What workers import once they know their checkpoint, ahead: by the template that they are forked from.

Here nothing may be computed and no GPU asked. What cannot be imported is no error: the worker says so, with
what to change.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from xgr_runtime.config import ImportsConfig, parse
from xgr_runtime.model.choice import why_not_sglang

# torch then counts GPUs without a call that a fork would not survive.
_COUNT_WITHOUT_CUDA = "PYTORCH_NVML_BASED_CUDA_CHECK"


def import_ahead(argv: Sequence[str]) -> None:
    """Import what a worker with these settings will. `argv` are those of an `ImportsConfig`."""
    config = parse(ImportsConfig, argv, {})
    with _no_cuda(), contextlib.suppress(Exception):  # of a library, or of ours that refuses a checkpoint
        obstacle = why_not_sglang(config.sglang_any_version, config.device)
        if config.model_backend == "transformers" or obstacle:
            importlib.import_module("xgr_runtime.model.backends.transformers")
        else:
            importlib.import_module("xgr_runtime.model.sglang.backend")
        _import_family(Path(config.model_path))


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
