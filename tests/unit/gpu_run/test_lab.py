"""How a launch is timed on a GPU, with a clock made for it; what an error and a floor are."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from floors import Work
from lab import Lab, error

from xgr_runtime.model.device.device import HostDevice


class FakeEvent:
    """A mark on a clock that every piece of work moves by one second."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, later: "FakeEvent") -> float:
        return 1e3 * (later.at - self.at)


class NoCapture(HostDevice):
    """A device on which one kind of work cannot be captured."""

    def capture(self, work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(toy=False, out=tmp_path, scratch=tmp_path, seed=1, rates={"matrix": 10.0, "copy": 1.0})
    made.cuda, made.device = True, HostDevice()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return made


def work() -> None:
    FakeEvent.now += 1.0


@pytest.mark.parametrize("captured", [True, False])
def test_a_call_takes_its_share_of_a_replay(lab: Lab, captured: bool) -> None:
    lab.device = HostDevice() if captured else NoCapture()
    timed = lab.measure([work, work, work])
    assert timed.seconds == pytest.approx(1.0) and timed.spread == pytest.approx(0.0)
    assert timed.repeats >= 7
    assert ("not permitted" in timed.facts.get("not captured", "")) != captured  # type: ignore[operator]


def test_inputs_in_turn_are_more_than_a_cache_holds(lab: Lab) -> None:
    assert lab.sets_of(1 << 30) == 2
    assert lab.sets_of(10 << 20) * (10 << 20) >= 120 << 20
    assert lab.sets_of(1) == 64


def test_a_floor_uses_the_rates_of_the_run(lab: Lab) -> None:
    assert lab.floor(Work(flop=50, bytes=2)) == 5.0


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    first, again = (Lab(True, tmp_path, tmp_path, seed=5) for _ in range(2))
    assert first.random.integers(1 << 30) == again.random.integers(1 << 30)


def test_errors_are_relative_norms() -> None:
    want = torch.tensor([3.0, 4.0])
    assert error(torch.tensor([3.0, 4.5]), want) == pytest.approx(0.1)
    assert math.isnan(error(torch.tensor([3.0, math.nan]), want))
