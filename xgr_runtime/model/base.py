"""The model seam: a model is a function of (token ids, positions, stage).

Backends run the layers of a checkpoint and hand every attention to the stage that the caller passed, so that
prefill, decode and the tests share one contract and no backend knows about requests, beams or pages.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args

import torch
from torch import Tensor

from xgr_runtime.config import Backend
from xgr_runtime.errors import ModelError
from xgr_runtime.model.sglang.versions import installed_version, untested

log = logging.getLogger(__name__)

BACKENDS = get_args(Backend)
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Stage(Protocol):
    """What a model calls for attention; it owns the keys and values of the rows it was built for."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [N, Hq, D], k and v [N, Hkv, D], all after rotary embedding -> [N, Hq, D].

        Called once per layer, in order. The three inputs may be strided views.
        """
        ...


@dataclass(frozen=True)
class Geometry:
    """The sizes of a checkpoint that KV memory, the wire and the catalog depend on."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    max_positions: int
    dtype: str
    """"float32" or "bfloat16": of weights, activations and KV; logits are always float32."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch spells it."""
        return DTYPES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.torch_dtype.itemsize


class ModelBackend(Protocol):
    """A loaded checkpoint."""

    name: str
    geometry: Geometry
    weights_hash: str

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage) -> Tensor:
        """tokens and positions [N] int64 -> hidden states after the final norm [N, hidden].

        The result is an inference tensor. Which rows see which keys is the stage's business alone.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden] -> [R, vocab] float32."""
        ...


def load_backend(name: str, model_path: Path, dtype: str, any_sglang_version: bool = False) -> ModelBackend:
    """The checkpoint in folder `model_path`, run by the backend `name` ("auto", "sglang" or "transformers").

    `dtype` is "float32" or "bfloat16"; `any_sglang_version` lets releases run that were not tested. Logs the
    choice and its reason. Raises ModelError with one line that says what to change.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported: use one of {', '.join(DTYPES)}")
    if name not in BACKENDS:
        raise ModelError(f"unknown model backend {name!r}: use one of {', '.join(BACKENDS)}")
    obstacle = _why_not_sglang(any_sglang_version)
    if name == "sglang" and obstacle:
        raise ModelError(f"model backend sglang cannot be used: {obstacle}")
    # Imported here because both libraries take seconds to import and refusals above should not.
    if name == "transformers" or obstacle:
        log.info("model backend: transformers, %s", obstacle if name == "auto" else "as asked for")
        from xgr_runtime.model.transformers_backend import load_transformers

        return load_transformers(model_path, dtype)
    found = installed_version()
    log.info("model backend: sglang %s, %s", found, "it is installed" if name == "auto" else "as asked for")
    from xgr_runtime.model.sglang.backend import load_sglang

    return load_sglang(model_path, dtype, any_sglang_version)


def _why_not_sglang(any_version: bool) -> str | None:
    """Why SGLang cannot run a model here, and what to change; None where it can be tried."""
    version = installed_version()
    if version is None:
        return "sglang is not installed (`./deploy/serve --model-backend sglang` sets it up)"
    if torch.cuda.is_available():
        return (
            "sglang would use the GPU and this release serves on CPUs (set CUDA_VISIBLE_DEVICES= to hide it)"
        )
    return None if any_version else untested(version)
