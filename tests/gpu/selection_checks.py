"""Beam selection against the definition in float64, bit for bit where the float32 scores decide."""

from __future__ import annotations

from dataclasses import dataclass

import cuda_batch
import numpy as np
import torch
from inputs import make_batch, make_trie
from lab import Lab
from results import Record

from xgr_kernels.beam_select import reference
from xgr_kernels.beam_select.cuda import Tuning
from xgr_kernels.beam_select.types import BeamBatch, Selection
from xgr_kernels.trie import ScoreMode

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


def against_reference(record: Record, lab: Lab) -> None:
    """Every level of every case in both score modes."""
    modes: tuple[ScoreMode, ...] = ("vocab", "legal")
    for case in TOY if lab.toy else CASES:
        trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
        for level in range(case.depth):
            for mode in modes:
                name = f"{case.name}-level={level}-{mode}"
                with record.guard(name):
                    batch = make_batch(lab.random, trie, level, case.widths, case.rows, case.filters, mode)
                    _compare(record, lab, name, case, batch)


def _compare(record: Record, lab: Lab, name: str, case: Case, batch: BeamBatch) -> None:
    logits = _logits(lab, batch.row_offsets[-1], case)
    run = _launch(lab, logits, batch)
    got = cuda_batch.unpack(run, batch)
    lse = run.selector.lse.cpu().numpy()
    want = reference.select(logits.cpu(), batch, lse=lse)
    differing = [f for f in FIELDS if not np.array_equal(getattr(got, f), getattr(want, f))]
    record.expect(f"{name} {' '.join(differing)}".strip(), not differing, EQUAL_REASON)
    record.check(f"{name}-lse", _lse_error(logits.cpu(), batch, lse, want), LSE, LSE_REASON)


def _lse_error(logits: torch.Tensor, batch: BeamBatch, lse: np.ndarray, want: Selection) -> float:
    """The largest error over rows that have a candidate; the others' is used by nobody."""
    worst, x = 0.0, logits.numpy()
    for b, trie in enumerate(batch.tries):
        begin = batch.row_offsets[b]
        for r in np.unique(want.parent[want.of(b)]) + begin:
            level, leaves = batch.level[b], batch.filters[b]
            first, last = reference.children(trie, level, int(batch.lo[r]), int(batch.hi[r]))
            live = reference.live_children(trie, leaves, level, first, last)
            exact = reference.row_log_sum_exp(x[r], live, batch.score_modes[b])
            worst = max(worst, abs(float(lse[r]) - float(exact)))
    return worst


def bad_logits(record: Record, lab: Lab) -> None:
    """NaN and infinity in one request's row fail it alone; its batch mates' bits stay."""
    case = TOY[0] if lab.toy else CASES[2]
    trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
    batch = make_batch(lab.random, trie, 1, (4, 5, 6), min(case.rows, 11))
    logits = _logits(lab, batch.row_offsets[-1], case)
    healthy = cuda_batch.unpack(_launch(lab, logits, batch), batch)
    for poison in (torch.nan, torch.inf):
        with record.guard(f"{poison}"):
            bad = logits.clone()
            bad[batch.row_offsets[1], case.vocab - 1] = poison
            got = cuda_batch.unpack(_launch(lab, bad, batch), batch)
            alone = got.invalid.tolist() == [False, True, False]
            record.expect(f"{poison}-fails-its-request-alone", alone, "one row of one request is bad")
            for b in (0, 2):
                same = np.array_equal(got.score[got.of(b)], healthy.score[healthy.of(b)])
                record.expect(f"{poison}-leaves-request-{b}", same, "its logits are the same bits")


def same_bits(record: Record, lab: Lab) -> None:
    """The order of parallel writes must not matter: launch after launch gives the same bits."""
    wide = Case(8192, 100_000, 3, 512, (512, 512), skewed=True)
    tied = Case(8192, 100_000, 3, 512, (512, 512), skewed=True, step=2.0)
    for case in TOY[:1] if lab.toy else (wide, tied):
        with record.guard(case.name):
            trie = make_trie(lab.random, case.items, case.vocab, case.depth, case.skewed)
            batch = make_batch(lab.random, trie, 1, case.widths, case.rows)
            logits = _logits(lab, batch.row_offsets[-1], case)
            first = _launch(lab, logits, batch).next.packed
            runs = [_launch(lab, logits, batch).next.packed for _ in range(lab.rounds(REPEATS))]
            same = all(torch.equal(first, other) for other in runs)
            record.expect(case.name, same, "every candidate has a key of its own")


def _launch(lab: Lab, logits: torch.Tensor, batch: BeamBatch) -> cuda_batch.Launched:
    return cuda_batch.launch(logits, batch, SMALL if lab.toy else None)


def _logits(lab: Lab, rows: int, case: Case) -> torch.Tensor:
    x = lab.randn(rows, case.vocab, dtype=torch.float32) * 3
    return torch.round(x / case.step) * case.step if case.step else x
