"""What workers try before they are ready: little, in bounded time, and enough to know what launches cost."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from prefill_worker import trials
from prefill_worker.trials import SIZES, try_forwards
from xgr_runtime.scheduling.cost_model import CostModel, alone, prompt_work


class Played:
    """An engine whose forwards take what `seconds` says, on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float], pages: int = 1000) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.sizes: list[int] = []
        self.pool = SimpleNamespace(pages=pages, page_size=16)
        self.model = SimpleNamespace(identity=SimpleNamespace(vocab=100))

    def run(self, parts: Any, on_layer: Callable[[int], None]) -> None:
        (part,) = parts
        assert len(part.pages) * 16 >= len(part.tokens) and max(part.pages) < self.pool.pages
        assert part.tokens.min() >= 0 and part.tokens.max() < 100
        self.sizes.append(len(part.tokens))
        self.now += self.seconds(len(part.tokens))

    def tried(self, most: int = 4096) -> list[Any]:
        engine: Any = self
        return try_forwards(engine, most, lambda: self.now)


@pytest.mark.parametrize("per_token", [1e-6, 5e-5, 1e-3, 5e-3, 5e-2, 2.0], ids="{:g} s per token".format)
def test_trials_of_a_model_of_any_size_end_soon(per_token: float) -> None:
    """A token by itself takes as long as sixteen of many, as weights have to come."""
    played = Played(lambda tokens: per_token * max(tokens, 16))
    tried = played.tried()
    assert tried and played.now <= trials.SECONDS + 8 * trials._LONGEST + 64 * per_token
    model = CostModel()
    model.seed(tried)
    assert model.cost is not None
    if per_token <= 5e-3:
        assert alone(model.cost, prompt_work(0, 2000)) == pytest.approx(2000 * per_token, rel=0.3)


@pytest.mark.parametrize(("most", "pages"), [(1, 1000), (40, 1000), (4096, 1), (4096, 20), (300, 1000)])
def test_no_prompt_is_longer_than_what_is_allowed_or_held(most: int, pages: int) -> None:
    played = Played(lambda tokens: 1e-5 * tokens, pages)
    tried = played.tried(most)
    assert all(size <= min(most, 16 * pages) for size in played.sizes)
    assert bool(tried) == (min(most, 16 * pages) >= SIZES[0])
