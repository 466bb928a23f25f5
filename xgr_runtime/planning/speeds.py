"""What launches take on a device that is planned with: as it was measured, or by a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from xgr_runtime.scheduling.cost_model import CostModel, Tried, Work, alone, prompt_work, together
from xgr_runtime.scheduling.roofline import Roofline
from xgr_runtime.wire.messages import StepCost

_PROMPTS = (32, 128, 512, 1024, 2048, 4096)  # tokens that schedulers know a roofline by
_ROWS = (16, 64, 256, 1024)
_KNOWN = (256, 2048)  # tokens of the prompts of these
_UNBOUNDED = 1e18


class Level(NamedTuple):
    """What a step computes of one search."""

    rows: int  # beams that enter
    prompt_tokens: int  # that each of them reads
    first: bool  # its beams come from the prompt: nothing runs through the layers

    @property
    def work(self) -> Work:
        return Work(1, self.rows, 0 if self.first else self.rows * self.prompt_tokens)


class Speed(Protocol):
    """Seconds of launches, and what schedulers believe of them."""

    prefill_cost: StepCost
    decode_cost: StepCost

    def forward(self, pieces: Sequence[tuple[int, int]]) -> float:
        """Of one over tokens [start, end) of some prompts."""
        ...

    def step(self, levels: Sequence[Level]) -> float:
        """Of one level of some searches."""
        ...


class MeasuredSpeed:
    """As launches cost where somebody measured them: schedulers believe what is."""

    def __init__(self, prefill: StepCost, decode: StepCost) -> None:
        self.prefill_cost, self.decode_cost = prefill, decode
        self._prefill, self._decode = _anywhere(prefill), _anywhere(decode)

    def forward(self, pieces: Sequence[tuple[int, int]]) -> float:
        """See `Speed`."""
        return alone(self._prefill, together(prompt_work(start, end) for start, end in pieces))

    def step(self, levels: Sequence[Level]) -> float:
        """See `Speed`."""
        return alone(self._decode, together(level.work for level in levels))


class RooflineSpeed:
    """By the numbers of a device and a model. Schedulers learn costs of some launches, as workers do."""

    def __init__(self, roofline: Roofline) -> None:
        self._roofline = roofline
        forwards = [Tried(prompt_work(0, size), self.forward([(0, size)])) for size in _PROMPTS]
        levels = [Level(rows, tokens, False) for rows in _ROWS for tokens in _KNOWN]
        steps = [Tried(level.work, self.step([level])) for level in levels]
        self.prefill_cost, self.decode_cost = _learned(forwards), _learned(steps)

    def forward(self, pieces: Sequence[tuple[int, int]]) -> float:
        """See `Speed`."""
        work = together(prompt_work(start, end) for start, end in pieces)
        read = sum(end for _, end in pieces)
        return self._roofline.seconds(int(work.tokens), int(work.pairs), read, len(pieces))

    def step(self, levels: Sequence[Level]) -> float:
        """See `Speed`."""
        rows = sum(level.rows for level in levels)
        running = [level for level in levels if not level.first]
        if not running:
            model, device = self._roofline.model, self._roofline.device
            return 2.0 * model.head_weights / device.bytes_per_second / device.of_peak
        through = sum(level.rows for level in running)
        pairs = sum(level.rows * level.prompt_tokens for level in running)
        read = sum(level.prompt_tokens for level in running)
        return self._roofline.seconds(through, pairs, read, rows)


def _learned(tried: Sequence[Tried]) -> StepCost:
    """What a worker believes after these launches."""
    model = CostModel()
    model.seed(tried)
    assert model.cost is not None, "something was tried"
    return model.cost


def _anywhere(cost: StepCost) -> StepCost:
    """The same for launches larger than any that was seen: what is not known is taken to go on so."""
    return msgspec.structs.replace(cost, most_tokens=_UNBOUNDED, most_pairs=_UNBOUNDED)
