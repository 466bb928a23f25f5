"""How long a selection takes at each level of a catalog, beside a flat topk and a padded trie."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import rivals
import torch
from exact import best_scores, candidates
from floors import selection
from inputs import make_trie, popular_batch
from lab import Lab, near
from results import Figures
from test_selection import SMALL
from torch import Tensor

from xgr_kernels.beam_select.cuda import BeamState, DeviceTrie, Selector, request_row, splits_for
from xgr_kernels.beam_select.types import BeamBatch

LIMIT = 3e-5
MAX_REQUESTS = 16  # of a cohort
REASON = "float32 scores of 15 to 40: a few steps of 2e-6 to 4e-6; torch's log_softmax of 150,000 adds 1.5e-5"


pytestmark = pytest.mark.times


def cases(
    vocabs: tuple[int, ...], sizes: tuple[int, ...], shapes: tuple[bool, ...], levels: Iterable[int]
) -> list[Any]:
    """vocab, items, skewed, level."""
    return [
        pytest.param(
            vocab, items, skewed, level, id=f"V{vocab}-{items}-{'zipf' if skewed else 'uniform'}-{level}"
        )
        for level, vocab, items, skewed in product(levels, vocabs, sizes, shapes)
    ]


FULL = cases((8192, 151936), (100_000, 1_000_000), (False, True), range(3))


@pytest.mark.cases("vocab, items, skewed, level", full=FULL, toy=cases((64,), (200,), (True,), [1]))
def test_select(
    lab: Lab,
    figures: Figures,
    subtests: pytest.Subtests,
    vocab: int,
    items: int,
    skewed: bool,
    level: int,
) -> None:
    """B requests of W beams; level 0 starts from one of each. Levels share a small vocabulary."""
    W, B, codebook = (4, 2, 64) if lab.toy else (256, 4, 8192)
    trie = make_trie(lab.random, items, codebook, 3, skewed, spread=vocab >= 3 * codebook)
    batch = popular_batch(lab.random, trie, level, B, W)
    R = batch.row_offsets[-1]
    sets = lab.sets_of(4 * R * vocab)
    logits = [lab.randn(R, vocab, dtype=torch.float32) * 3 for _ in range(sets)]
    row, token, _ = candidates(batch, lab.where)
    want = best_scores(logits[0], batch)
    floor = lab.floor(selection(R, vocab, len(row), sum(len(of) for of in want)))
    facts: dict[str, Any] = {"rows": R, "children": len(row)}
    with subtests.test("ours"):
        ours = _Ours(lab, batch, R, vocab)
        near(_off(ours.scores(logits[0]), want), LIMIT, REASON)
        assert not bool(ours.selector.overflow.any()), "it was not captured to repeat"
        timed = lab.measure([partial(ours.select, x) for x in logits])
        figures.time("select", timed.seconds, floor, **timed.facts, **facts)
    for name, make in rivals.SELECTION.items():
        with subtests.test(name), rivals.may_fail(figures, name):
            rival = make(lab, batch, vocab, row, token)
            got = [x[x > -torch.inf] for x in rival.select(logits[0])]
            near(_off(got, want), LIMIT, REASON)
            timed = lab.measure([partial(rival.select, x) for x in logits])
            figures.time(name, timed.seconds, floor, **timed.facts, **facts)


class _Ours:
    """One selection with everything in place, as an engine has it."""

    def __init__(self, lab: Lab, batch: BeamBatch, R: int, vocab: int) -> None:
        B, W, level = len(batch.width), batch.width[0], batch.level[0]
        requests = B if lab.toy else MAX_REQUESTS  # as in a worker: places without a request are launched too
        self.selector = Selector(
            rows=max(R, B * W),
            requests=requests,
            vocab=vocab,
            max_width=W,
            tail_tokens=1,
            device=lab.where,
            tuning=SMALL if lab.toy else None,
        )
        self._trie = DeviceTrie(batch.tries[0], lab.where)
        self._now, self.next = (BeamState(max(R, B * W), 1, lab.where) for _ in range(2))
        for column, values in (
            (self._now.score, batch.scores),
            (self._now.lo, batch.lo),
            (self._now.hi, batch.hi),
        ):
            column[:R].copy_(torch.from_numpy(np.array(values)))
        rows = [
            request_row(
                row_begin=batch.row_offsets[b],
                row_end=batch.row_offsets[b + 1],
                out_begin=b * W,
                width=W,
                level=level,
                legal=False,
                trie=self._trie,
            )
            for b in range(B)
        ]
        self.selector.table[:B].copy_(torch.from_numpy(np.stack(rows)))
        owner = np.repeat(np.arange(B, dtype=np.int32), np.diff(batch.row_offsets))
        self.selector.owner[:R].copy_(torch.from_numpy(owner))
        self._splits = splits_for(R, vocab)
        self._B, self._W = B, W

    def select(self, logits: Tensor) -> None:
        self.selector.select(logits, self._now, self.next, splits=self._splits)

    def scores(self, logits: Tensor) -> list[Tensor]:
        """Of each request's chosen, best first."""
        self.next.packed.fill_(-1)
        self.selector.begin()
        self.select(logits)
        counts = self.selector.count.tolist()[: self._B]
        return [self.next.score[b * self._W : b * self._W + n] for b, n in enumerate(counts)]


def _off(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference; infinite where a request has another number of results."""
    if [len(x) for x in got] != [len(x) for x in want]:
        return float("inf")
    return max(float((a.double() - b).abs().max()) for a, b in zip(got, want, strict=True))
