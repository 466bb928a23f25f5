"""Where a run happens: the device, its measured rates, fresh random numbers, and how a launch is timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from floors import Work
from torch import Tensor

from xgr_runtime.config import Backend
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.device.device import CudaDevice, Device, HostDevice

SECONDS = 0.3  # that one figure is measured for, about
WARM = 3  # replays that do not count


class Timed(NamedTuple):
    """Seconds of one call, the median of `repeats`; the spread is that of the middle half."""

    seconds: float
    spread: float
    repeats: int
    obstacle: str = ""  # to a capture

    @property
    def facts(self) -> dict[str, float | int | str]:
        """What a figure says beside its time."""
        known: dict[str, float | int | str] = {"spread": self.spread, "repeats": self.repeats}
        return known | ({"not captured": self.obstacle} if self.obstacle else {})


@dataclass
class Lab:
    """One run's surroundings. `toy` asks every test for sizes that an interpreter can bear."""

    toy: bool
    out: Path  # what is kept
    scratch: Path  # what is not
    seed: int
    rates: dict[str, float] = field(default_factory=dict)
    layers: Backend = "auto"  # where a test names none

    def __post_init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.models: dict[tuple[Path, str], ModelBackend] = {}
        self.start(self.seed)
        self.device: Device = CudaDevice(0) if self.cuda else HostDevice()

    @property
    def where(self) -> torch.device:
        return self.device.where

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Attention kernels that run here; a CPU has a stand-in for both."""
        hopper = not self.cuda or torch.cuda.get_device_capability()[0] == 9
        return ("fa2", "fa3") if hopper else ("fa2",)

    def start(self, seed: int) -> None:
        """Fresh random numbers."""
        self.random = np.random.default_rng(seed)
        torch.manual_seed(seed)

    def renew(self) -> None:
        """Other streams and graphs, and no memory kept, behind a test that ended or went wrong."""
        if self.cuda:
            torch.cuda.synchronize()
            gc.collect()  # engines and their graphs refer to each other
            torch.cuda.empty_cache()
            self.device = CudaDevice(0)

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.where, dtype=torch.float32).to(dtype)

    def sets_of(self, bytes_each: int) -> int:
        """How many inputs in turn a cache of 60 MB cannot hold: two caches' worth, 2 to 64."""
        return 2 if self.toy else max(2, min(64, -(-(120 << 20) // max(1, bytes_each))))

    def needs(self, algorithm: str) -> None:
        """Skips a test of attention kernels that do not run here; a CPU has a stand-in for all."""
        if self.cuda and algorithm == "fa3" and torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("needs a Hopper GPU")

    def floor(self, work: Work) -> float:
        """Seconds by the rates of this run."""
        return work.seconds(self.rates)

    def measure(self, calls: Sequence[Callable[[], object]]) -> Timed:
        """Seconds of one of the calls, which work on inputs of their own, one after the other.

        On a GPU all of them are captured as one graph, which is replayed; where a capture fails, as a rival's
        may, they are launched one by one.
        """

        def all_calls() -> None:
            for call in calls:
                call()

        if not self.cuda:
            return Timed(_clocked(all_calls) / len(calls), 0.0, 1)
        obstacle = ""
        try:
            replay = self.device.capture(all_calls)
        except Exception as error:
            self.settle()
            replay, obstacle = all_calls, (str(error).splitlines() or [type(error).__name__])[0]
        times = self.replays(replay)
        quarters = statistics.quantiles(times, n=4)
        count = len(calls)
        spread = (quarters[2] - quarters[0]) / count
        return Timed(statistics.median(times) / count, spread, len(times), obstacle)

    def alive(self) -> bool:
        """Whether the device still does what it is asked."""
        try:
            return int(torch.ones(1, device=self.where).sum()) == 1
        except RuntimeError:
            return False

    def rounds(self, count: int) -> int:
        """How often something is repeated: once where only the script is tried."""
        return 1 if self.toy else count

    def replays(self, work: Callable[[], object]) -> list[float]:
        """Seconds of each of several runs, on the device's own clock."""
        for _ in range(WARM):
            work()
        self.settle()
        started = time.perf_counter()
        work()
        self.settle()
        once = time.perf_counter() - started
        count = 3 if self.toy else max(7, min(100, int(SECONDS / max(once, 1e-6))))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        self.settle()
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]

    def model(self, folder: Path, layers: str = "") -> ModelBackend:
        """The checkpoint in `folder` by the model backend of that name; only the one asked for last is kept.

        Skips a test whose backend cannot be used here.
        """
        key = folder, layers or self.layers
        if key not in self.models:
            self.models.clear()
            gc.collect()
            from xgr_runtime.model.choice import load_backend, why_not_sglang  # seconds

            if layers == "sglang" and (why := why_not_sglang(False, str(self.where))):
                pytest.skip(why)
            dtype = "bfloat16" if self.cuda else "float32"
            self.models[key] = load_backend(key[1], folder, dtype, device=str(self.where))
        return self.models[key]

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.cuda:
            torch.cuda.synchronize()


def measure_rates(lab: Lab) -> dict[str, float]:
    """FLOP/s of a bfloat16 product of random matrices, and bytes/s, read plus written, of a copy."""
    n = 256 if lab.toy else 8192
    a, b = lab.randn(n, n), lab.randn(n, n)
    product = torch.empty_like(a)
    matrix = lab.measure([lambda: torch.mm(a, b, out=product)])
    size = (1 << 20) if lab.toy else (4 << 30)
    source = torch.empty(size, dtype=torch.uint8, device=lab.where).random_(0, 256)
    target = torch.empty_like(source)
    copy = lab.measure([lambda: target.copy_(source)])
    return {"matrix": 2 * n**3 / matrix.seconds, "copy": 2 * size / copy.seconds}


def error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| in float64, Frobenius norms; NaN if anything is NaN."""
    want = want.double()
    return float((got.double() - want).norm() / want.norm().clamp(min=1e-30))


def _clocked(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def near(error: float, limit: float, reason: str) -> None:
    """Fails a test whose error is beyond its limit; NaN always is."""
    assert error <= limit, f"{error:.3g}, at most {limit:.3g}: {reason}"
