"""The model seam: a model is a function of (token ids, positions, stage).

Backends run the layers of a checkpoint and hand every attention to the stage that the caller passed, so that
prefill, decode and the tests share one contract and no backend knows about requests, beams or pages.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from xgr_runtime.model.backends.head import Head
from xgr_runtime.wire.messages import ModelIdentity

Place = Callable[[nn.Module], None]
"""Called with a loaded module before anything else refers to its weights: it may move them elsewhere."""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""As torch spells them; logits are always float32. A CPU runs the first two."""


class Stage(Protocol):
    """What a model calls for attention; it owns the keys and values of the rows it was built for."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [N, Hq, D], k and v [N, Hkv, D], all after rotary embedding -> [N, Hq, D].

        Called once per layer, in order. The three inputs may be strided views.
        """
        ...


@runtime_checkable
class PacedStage(Protocol):
    """A stage that can be told of a layer that nobody computes."""

    @property
    def shared_tokens(self) -> int:
        """Of prompts, whose KV the forward reads."""
        ...

    def passed(self, layer: int) -> None:
        """As if its attention began."""
        ...


class ModelBackend(Protocol):
    """A loaded checkpoint."""

    name: str
    identity: ModelIdentity
    """Its sizes, and what two workers must have in common; dtype is of weights, activations and KV."""

    q_heads: int
    max_positions: int
    device: torch.device
    prunes: bool
    """Whether `forward` takes `keep`."""

    head: Head
    """Hidden states to logits. Its `logits_into` may be part of a captured launch."""

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
