"""Catches what a captured launch must not do: look at the value of a tensor."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xgr_runtime.model.base import ModelBackend

_READ_BACKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class NoReadBack(TorchDispatchMode):
    """`with NoReadBack():` an operation whose result depends on a value, or hands one to Python, raises."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.startswith(_READ_BACKS), f"{func.name()} reads a value back"
        return func(*args, **(kwargs or {}))


def forward_without_read_back(backend: ModelBackend) -> None:
    """Fails if `backend` looks at a value in its layers or its head."""
    tokens, out = torch.arange(8), torch.empty(8, backend.identity.vocab)
    with NoReadBack():
        backend.head.logits_into(backend.forward(tokens, tokens, _FirstValues()), out)
    assert torch.equal(out, backend.logits(backend.forward(tokens, tokens, _FirstValues())))


class _FirstValues:
    """A stage with nothing in it that could read back."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return v.repeat_interleave(q.shape[1] // v.shape[1], 1)
