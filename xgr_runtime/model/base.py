"""The model seam: a model is a function of (token ids, positions, stage).

Backends run the layers of a checkpoint and hand every attention to the stage that the caller passed, so that
prefill, decode and the tests share one contract and no backend knows about requests, beams or pages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Place = Callable[[nn.Module], None]
"""Called with a loaded module before anything else refers to its weights: it may move them elsewhere."""

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
        return self.layers * self.layer_token_bytes

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.torch_dtype.itemsize


class ModelBackend(Protocol):
    """A loaded checkpoint."""

    name: str
    geometry: Geometry
    weights_hash: str
    device: torch.device
    prunes: bool
    """Whether `forward` takes `keep`."""

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        """tokens and positions [N] int64 -> hidden states after the final norm [N, hidden].

        The result is an inference tensor. Which rows see which keys is the stage's business alone. With
        `keep` [M] int64 only these rows are computed to the end, [M, hidden]; the stage then gives [M, Hq, D]
        in the last layer.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden] -> [R, vocab] float32."""
        ...

    def logits_into(self, hidden: Tensor, out: Tensor) -> None:
        """The same into `out` [R, vocab] float32, which may be part of a captured launch's fixed memory."""
        ...
