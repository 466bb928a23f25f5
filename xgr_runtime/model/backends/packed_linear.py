"""Linear layers of a CPU, their weights laid out for oneDNN's matrix products.

torch takes MKL for float32, which has AVX-512 for Intel's processors only; oneDNN comes with torch too and
looks at the instructions instead of the maker. Its products want weights in blocks, laid out once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_TYPICAL_ROWS = 256  # that the layout is made for; any other number runs as well


class PackedLinear:
    """x -> x @ weight.T + bias, in float32; several weights that take the same x are one product."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None] = ()) -> None:
        """weights [out_i, in] and biases [out_i], joined in this order; all biases, or none."""
        weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
        present = [b.detach() for b in biases if b is not None]
        assert not present or len(present) == len(weights)
        self._bias = torch.cat(present) if present else None
        self.packs = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            self._weight = (
                torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
                if self.packs
                else weight
            )

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """A copy of the weights [out, in] as they were, and the bias."""
        return self._weight.to_dense() if self.packs else self._weight, self._bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]."""
        if not self.packs:
            return torch.nn.functional.linear(x, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return out
