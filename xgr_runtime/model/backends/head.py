"""The vocabulary head, which every backend takes from its library as weights only: its logits are float32."""

import torch
from torch import Tensor

from xgr_runtime.model.backends.packed_linear import PackedLinear

_PACKED = 256 << 20
"""Bytes of the largest head that a CPU lays out for its fastest products: the embedding may still need it."""


class Head:
    """The last linear layer of a checkpoint; its logits are float32 whatever the layers before it run in.

    A bfloat16 product would round logits of 16 to 32 to steps of 0.125, and ties would choose the beams. On a
    GPU a product of bfloat16 weights gives float32; on a CPU none does, so the weights are kept in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, vocab: int) -> None:
        """weight [at least vocab, hidden], bias [at least vocab]: what is beyond `vocab` is padding."""
        self.vocab = vocab
        weight = weight[:vocab].detach()
        weight = weight if weight.is_cuda else weight.float()
        bias = None if bias is None else bias[:vocab].detach().float()
        small = weight.is_cpu and 4 * weight.numel() <= _PACKED
        self._packed = PackedLinear([weight], [bias]) if small else None
        self._plain = None if small else (weight, bias)

    def of_range(self, first: int, end: int) -> "Head":
        """The head of tokens [first, end) alone. On a GPU it is a view of the same weights."""
        weight, bias = self._weights()
        return Head(weight[first:end], None if bias is None else bias[first:end], end - first)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden] -> [R, vocab] float32."""
        if self._packed is not None:
            with torch.inference_mode():
                return self._packed(hidden.float())
        out = torch.empty(hidden.shape[0], self.vocab, dtype=torch.float32, device=hidden.device)
        self.logits_into(hidden, out)
        return out

    def logits_into(self, hidden: Tensor, out: Tensor) -> None:
        """hidden [R, hidden] -> out [R, vocab] float32, whose rows may lie further apart."""
        with torch.inference_mode():
            if self._packed is not None:
                out.copy_(self._packed(hidden.float()))
                return
            weight, bias = self._weights()
            if weight.dtype == torch.float32:
                torch.mm(hidden.float(), weight.t(), out=out)
            else:
                torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=torch.float32, out=out)
            if bias is not None:
                out.add_(bias)

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        """[vocab, hidden] and [vocab], not packed."""
        if self._packed is not None:
            return self._packed.plain()
        assert self._plain is not None
        return self._plain
