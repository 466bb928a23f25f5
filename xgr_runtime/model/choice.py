"""Which library runs a checkpoint: SGLang where it can, else Hugging Face's transformers.

On a GPU `auto` takes our own layers before SGLang's, where a checkpoint fits them. Neither was measured. By
count ours launch less: four kernels of a layer beside products and attention, where SGLang has four (Llama)
or five (Qwen 3), and they store a prompt's keys and values without a copy. At start they are compared with
the library's on that very device, and nothing of SGLang is loaded. `--model-backend sglang` takes SGLang's.
"""

import logging
from pathlib import Path
from typing import get_args

import torch

from xgr_runtime.checkpoint import read_config
from xgr_runtime.config import Backend
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.fused import for_gpu
from xgr_runtime.model.backends.saved import load_saved
from xgr_runtime.model.base import DTYPES, ModelBackend, Place
from xgr_runtime.model.device.place import take_device
from xgr_runtime.model.kept_checks import KeptChecks
from xgr_runtime.model.sglang.versions import installed_version, untested

log = logging.getLogger(__name__)

BACKENDS = get_args(Backend)


def load_backend(
    name: str,
    model_path: Path,
    dtype: str,
    any_sglang_version: bool = False,
    device: str = "cpu",
    place: Place | None = None,
    checks: KeptChecks | None = None,
) -> ModelBackend:
    """The checkpoint in folder `model_path`, run by the backend `name`, see `BACKENDS`.

    `dtype` is "float32", "bfloat16" or, on a GPU, "float16"; `device` is "cpu", "cuda" or "cuda:N";
    `any_sglang_version` lets releases run that were not tested; `place` may move the weights; `checks` are
    those of earlier starts. A GPU becomes the thread's current one. Logs the choice and its reason. Raises
    ModelError with one line that says what to change.
    """
    take_device(device)
    check_dtype(dtype, device)
    if name not in BACKENDS:
        raise ModelError(f"unknown model backend {name!r}: use one of {', '.join(BACKENDS)}")
    if name == "simulated":
        from xgr_runtime.model.backends.simulated import load_simulated

        return load_simulated(model_path, dtype, device)
    obstacle = why_not_sglang(any_sglang_version, device)
    if name == "sglang" and obstacle:
        raise ModelError(f"model backend sglang cannot be used: {obstacle}")
    # Imported here because both libraries take seconds to import and refusals above should not.
    if name == "transformers" or obstacle:
        log.info("model backend: transformers, %s", obstacle if name == "auto" else "as asked for")
        if checks and place is None and (saved := load_saved(model_path, dtype, device, checks)):
            log.info("the model was checked before, and needs no library")
            return saved
        from xgr_runtime.model.backends.transformers import load_transformers

        return load_transformers(model_path, dtype, device, place, checks)
    found = installed_version()
    if name == "auto" and _has_own_layers(model_path, device):
        from xgr_runtime.model.backends.transformers import load_fused

        if own := load_fused(model_path, dtype, device, place, checks):
            log.info("model backend: transformers, in our own layers, which launch less than SGLang's")
            return own
    log.info("model backend: sglang %s, %s", found, "it is installed" if name == "auto" else "as asked for")
    from xgr_runtime.model.sglang.backend import load_sglang

    return load_sglang(model_path, dtype, any_sglang_version, device, place, checks)


def _has_own_layers(folder: Path, device: str) -> bool:
    """Whether our own layers may run the checkpoint. A broken one is for its library to refuse."""
    try:
        return for_gpu(str(read_config(folder).get("model_type")), device)
    except ModelError:
        return False


def check_dtype(dtype: str, device: str) -> None:
    """Raises ModelError where weights of this type do not run on `device`."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported: use one of {', '.join(DTYPES)}")
    if dtype == "float16" and device == "cpu":
        raise ModelError(
            "dtype float16 runs on a GPU only: use --dtype float32 or bfloat16, or --device cuda"
        )


def why_not_sglang(any_version: bool, device: str) -> str | None:
    """Why SGLang cannot run a model here, and what to change; None where it can be tried."""
    version = installed_version()
    if version is None:
        return "sglang is not installed (`./deploy/serve --model-backend sglang` sets it up)"
    if device == "cpu" and torch.cuda.is_available():
        return "beside a GPU sglang runs on it: use --device cuda, or hide it with CUDA_VISIBLE_DEVICES="
    return None if any_version else untested(version)
