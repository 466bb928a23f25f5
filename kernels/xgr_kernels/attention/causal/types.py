"""What causal attention is told about keys that it does not see."""

from torch import Tensor

Partial = tuple[Tensor, Tensor]
"""o [R, Hq, D] and lse2 [R, Hq] (base 2) over other keys; o = 0 and lse2 = -inf where a row has none."""
