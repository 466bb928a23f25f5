"""A prompt's last layer: keys and values of all its tokens, everything else for its last token alone.

Nothing reads what the last layer makes of the other tokens. So its attention computes the rows that are kept,
and the layer begins again with these rows, for which its attention has the answer. No layer's own code is
needed for that, only its inputs; whether it holds for a model is tried at start (`prunes`).
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xgr_runtime.model.base import ModelBackend, Stage

log = logging.getLogger(__name__)

_TOKENS = 6
# Of the largest number: other shapes, other order of sums.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2, "float16": 1e-2}


class KeptRows:
    """The stage of a forward whose last layer goes on with the rows `keep` [M] alone.

    `stage.attend` gets all rows of the last layer, and returns [M, Hq, D].
    """

    def __init__(self, stage: Stage, keep: Tensor, last_layer: int) -> None:
        self.keep = keep
        self._stage = stage
        self._last_layer = last_layer
        self._answer: Tensor | None = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`. Ends the first pass through the last layer, and answers the second."""
        if layer != self._last_layer:
            return self._stage.attend(layer, q, k, v, scale)
        if self._answer is None:
            self._answer = self._stage.attend(layer, q, k, v, scale)
            raise _FirstPassOver
        return self._answer


class _FirstPassOver(Exception):
    """The last layer's keys and values are kept, and its attention is known."""


def prune(layer: nn.Module, stage_of: Callable[[dict[str, Any]], Stage | None], rows: int) -> None:
    """Let `layer`, a decoder's last, serve `KeptRows`; other stages notice nothing.

    `stage_of` finds the stage of the running forward, by the layer's keyword arguments; `rows` is the
    dimension of its inputs, positional or not, along which rows lie.
    """

    def begin(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        stage = stage_of(kwargs)
        if not isinstance(stage, KeptRows):
            return None
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        count = hidden.shape[rows]
        # Before the first pass, for a layer may add to its inputs in place.
        kept = _select((args, kwargs), stage.keep, rows, count)
        try:
            module.forward(*args, **kwargs)
        except _FirstPassOver:
            return kept  # type: ignore[no-any-return]
        raise AssertionError("the last layer has no attention")

    layer.register_forward_pre_hook(begin, with_kwargs=True)


def prunes(backend: ModelBackend) -> bool:
    """Whether the backend's forward gives the same rows with `keep` as without."""
    tokens = (torch.arange(_TOKENS, device=backend.device) * 7919 + 3).remainder(backend.identity.vocab)
    positions = torch.arange(_TOKENS, device=backend.device)
    keep = torch.tensor([1, _TOKENS - 1], device=backend.device)
    want = backend.forward(tokens, positions, _OwnValues())[keep]
    try:
        got = backend.forward(tokens, positions, _OwnValues(keep, backend.identity.layers - 1), keep)
    except Exception as error:  # of any kind: a layer whose inputs are other than we think
        log.info("the last layer runs for all tokens of a prompt: %r", error)
        return False
    limit = _TOLERANCE[backend.identity.dtype] * float(want.abs().max())
    same = got.shape == want.shape and float((got.float() - want.float()).abs().max()) <= limit
    if not same:
        log.info("the last layer runs for all tokens of a prompt: with fewer it computes something else")
    return same


def _select(value: Any, keep: Tensor, dim: int, count: int) -> Any:
    """The rows `keep` of every tensor in `value` that has `count` rows along `dim`; the rest as it is."""
    if isinstance(value, Tensor):
        has_rows = value.dim() > dim and value.shape[dim] == count
        return value.index_select(dim, keep) if has_rows else value
    if isinstance(value, tuple):
        return tuple(_select(part, keep, dim, count) for part in value)
    if type(value) is dict:
        return {name: _select(part, keep, dim, count) for name, part in value.items()}
    return value


class _OwnValues:
    """Attention of tokens to themselves alone, which depends on their positions no more than on each other.

    Their queries take part, so that a row whose query was lost shows.
    """

    def __init__(self, keep: Tensor | None = None, last_layer: int = -1) -> None:
        self._keep = keep
        self._last_layer = last_layer

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        group = q.shape[1] // v.shape[1]
        o = v.repeat_interleave(group, 1) + scale * q * k.repeat_interleave(group, 1)
        return o[self._keep] if layer == self._last_layer and self._keep is not None else o
