"""Beam selection against the definition in float64, bit for bit where the float32 scores decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cuda_batch
import numpy as np
import pytest
import torch
from inputs import make_batch, make_trie
from lab import Lab, near

from xgr_kernels.beam_select import reference
from xgr_kernels.beam_select.cuda import Tuning
from xgr_kernels.beam_select.types import BeamBatch, Selection
from xgr_kernels.trie import Normaliser

LSE = 8e-6
LSE_REASON = (
    "one rounding to float32 of a log-sum-exp of 8 to 16 is 1e-6; sums of 150,000 terms add a few more"
)
EQUAL_REASON = "the same float32 scores have one order: score, parent, token"
SMALL = Tuning(block=64, tile=64, programs=2, maxima=64, capacity=128)  # for an interpreter
REPEATS = 8  # launches whose bits are compared

FIELDS = ("offsets", "invalid", "overflow", "parent", "token", "lo", "hi", "score")


@dataclass(frozen=True)
class Case:
    """One batch. `step` rounds logits to its multiples, so that many candidates tie; 0 leaves them."""

    vocab: int
    items: int
    depth: int
    rows: int
    widths: tuple[int, ...]
    skewed: bool = False
    step: float = 0.0
    filters: tuple[str, ...] = ("none",)

    @property
    def name(self) -> str:
        """For the ids of tests."""
        widths = "+".join(map(str, self.widths))
        kind = ("zipf" if self.skewed else "uniform") + (f"-ties-{self.step}" if self.step else "")
        return (
            f"V={self.vocab}-items={self.items}-rows={self.rows}-W={widths}-{kind}-{'+'.join(self.filters)}"
        )


CASES = [
    Case(1027, 900, 2, 1, (1,)),
    Case(1027, 40, 3, 7, (64,)),  # underfull: fewer leaves than beams
    Case(8191, 3000, 3, 33, (1, 50, 333), skewed=True),
    Case(8191, 20000, 3, 130, (128, 128), skewed=True, step=4.0),
    Case(1027, 6000, 2, 129, (1000,), step=1000.0),
    Case(8192, 30000, 4, 257, (512, 7), skewed=True, filters=("bits", "bits+deny")),
    Case(1027, 3000, 3, 33, (20, 20, 20, 20), filters=("deny", "all denied", "none", "bits")),
    Case(151936, 20000, 3, 40, (256,), skewed=True),
]
TOY = [
    Case(67, 30, 2, 3, (5, 1), step=1.0),
    Case(67, 12, 2, 3, (20,), filters=("bits+deny",)),
]


MODES: tuple[Normaliser, ...] = ("vocab", "legal")


def named(*cases: Case) -> list[Any]:
    """For ids."""
    return [pytest.param(case, id=case.name) for case in cases]


def levels(cases: list[Case]) -> list[Any]:
    """Every level of every case."""
    return [
        pytest.param(case, level, id=f"{case.name}-level={level}")
        for case in cases
        for level in range(case.depth)
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.cases("case, level", full=levels(CASES), toy=levels(TOY))
def test_against_reference(lab: Lab, case: Case, level: int, mode: Normaliser) -> None:
    trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
    batch = make_batch(lab.random, trie, level, case.widths, case.rows, case.filters, mode)
    logits = _logits(lab, batch.row_offsets[-1], case)
    run = _launch(lab, logits, batch)
    got = cuda_batch.unpack(run, batch)
    lse = run.selector.lse.cpu().numpy()
    want = reference.select(logits.cpu(), batch, lse=lse)
    differing = [f for f in FIELDS if not np.array_equal(getattr(got, f), getattr(want, f))]
    assert not differing, EQUAL_REASON
    near(_lse_error(logits.cpu(), batch, lse, want), LSE, LSE_REASON)


def _lse_error(logits: torch.Tensor, batch: BeamBatch, lse: np.ndarray, want: Selection) -> float:
    """The largest error over rows that have a candidate; the others' is used by nobody."""
    worst, x = 0.0, logits.numpy()
    for b, trie in enumerate(batch.tries):
        begin = batch.row_offsets[b]
        for r in np.unique(want.parent[want.of(b)]) + begin:
            level, leaves = batch.level[b], batch.filters[b]
            first, last = reference.children(trie, level, int(batch.lo[r]), int(batch.hi[r]))
            live = reference.live_children(trie, leaves, level, first, last)
            exact = reference.row_log_sum_exp(x[r], live, batch.normalisers[b])
            worst = max(worst, abs(float(lse[r]) - float(exact)))
    return worst


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.cases("case", full=named(CASES[2]), toy=named(TOY[0]))
def test_a_bad_row_fails_its_request_alone(lab: Lab, case: Case, poison: float) -> None:
    trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
    batch = make_batch(lab.random, trie, 1, (4, 5, 6), min(case.rows, 11))
    logits = _logits(lab, batch.row_offsets[-1], case)
    healthy = cuda_batch.unpack(_launch(lab, logits, batch), batch)
    logits[batch.row_offsets[1], case.vocab - 1] = poison
    got = cuda_batch.unpack(_launch(lab, logits, batch), batch)
    assert got.invalid.tolist() == [False, True, False]
    for b in (0, 2):  # the same bits as before
        assert np.array_equal(got.score[got.of(b)], healthy.score[healthy.of(b)]), f"request {b}"


WIDE = Case(8192, 100_000, 3, 512, (512, 512), skewed=True)
TIED = Case(8192, 100_000, 3, 512, (512, 512), skewed=True, step=2.0)


@pytest.mark.cases("case", full=named(WIDE, TIED), toy=named(TOY[0]))
def test_the_order_of_parallel_writes_does_not_matter(lab: Lab, case: Case) -> None:
    trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
    batch = make_batch(lab.random, trie, 1, case.widths, case.rows)
    logits = _logits(lab, batch.row_offsets[-1], case)
    first = _launch(lab, logits, batch).next.packed
    for _ in range(lab.rounds(REPEATS)):
        assert torch.equal(first, _launch(lab, logits, batch).next.packed), (
            "every candidate has a key of its own"
        )


def _launch(lab: Lab, logits: torch.Tensor, batch: BeamBatch) -> cuda_batch.Launched:
    return cuda_batch.launch(logits, batch, SMALL if lab.toy else None)


def _logits(lab: Lab, rows: int, case: Case) -> torch.Tensor:
    x = lab.randn(rows, case.vocab, dtype=torch.float32) * 3
    return torch.round(x / case.step) * case.step if case.step else x
