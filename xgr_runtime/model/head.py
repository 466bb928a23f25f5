"""The vocabulary head, which every backend takes from its library as weights only: its logits are float32."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Head:
    """The last linear layer of a checkpoint, in float32 whatever the layers before it run in.

    A bfloat16 product would round logits of 16 to 32 to steps of 0.125, and ties would choose the beams. On a
    CPU no product of bfloat16 has a float32 result, so the weights are kept in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, vocab: int) -> None:
        """weight [at least vocab, hidden], bias [at least vocab]: what is beyond `vocab` is padding."""
        self._weight = weight[:vocab].detach().float()
        self._bias = None if bias is None else bias[:vocab].detach().float()

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden] -> [R, vocab] float32."""
        with torch.inference_mode():
            return F.linear(hidden.float(), self._weight, self._bias)
