"""What a search says of the leaves that it did not find, against searches that find every leaf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
import torch
from beam_batches import build_filter, random_trie

from decode_worker.engines.adjusted_rows import adjust
from decode_worker.search import NOTHING_ABOVE, Penalty, Question, Search, last_kept
from router.listing import Diversity, Listing, choose, settled
from xgr_kernels.beam_select import BeamBatch
from xgr_kernels.beam_select.api import beam_select
from xgr_kernels.trie import LeafFilter, ScoreMode, Trie

VOCAB = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So little work gains nothing from more, which cost seconds where a core is busy."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@dataclass
class Game:
    """A catalog, a filter, and a model that is a table: the same prefix always has the same logits."""

    trie: Trie
    alive: LeafFilter
    mode: ScoreMode
    penalty: Penalty | None
    seed: int
    sharpness: float

    def logits(self, prefix: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        draw = np.random.default_rng([self.seed, *prefix])
        return (draw.normal(size=VOCAB) * self.sharpness).astype(np.float32)

    def search(self, width: int) -> Search:
        """A search that is over, step by step as the engine of a CPU takes it."""
        codebooks = [np.unique(tokens).astype(np.int64) for tokens in self.trie.tokens]
        question = Question(
            3,
            0,
            width,
            width,
            self.mode,
            self.trie,
            self.alive,
            codebooks=codebooks if self.mode == "level" else (),
            penalty=self.penalty,
        )
        rows = np.arange(question.most_beams, dtype=np.int32)
        search = Search(question, np.zeros(1, np.int32), rows, np.zeros(1, np.float32), self.trie.depth)
        while not search.over:
            self.step(search)
        return search

    def step(self, search: Search) -> None:
        question = search.question
        prefixes = [tuple(own) for own in search.own_tokens().tolist()] if search.level else [()]
        logits = torch.from_numpy(np.stack([self.logits(prefix) for prefix in prefixes]))
        batch = BeamBatch(
            [0, len(search.scores)],
            [search.level],
            [question.width],
            [question.trie],
            [question.filter],
            [question.normaliser(search.level)],
            search.scores,
            search.lo,
            search.hi,
        )
        chosen = beam_select(logits, adjust([search], logits, batch))
        search.advance(chosen.score, chosen.token, chosen.parent, chosen.lo, chosen.hi)


def game(seed: int, mode: ScoreMode = "vocab", penalty: Penalty | None = None) -> Game:
    draw = np.random.default_rng(seed)
    trie = random_trie(draw, int(draw.integers(20, 90)), int(draw.integers(1, 5)), VOCAB, skew=draw.random())
    alive = build_filter(draw.random(trie.leaves) < draw.choice([0.3, 0.8, 1.0]))
    return Game(trie, alive, mode, penalty, seed, float(draw.choice([0.5, 2.0, 8.0, 60.0])))


PENALTIES = [
    None,
    Penalty(1.7, np.array([1, 4, 9])),
    Penalty(0.4, np.array([2, 3])),
    Penalty(1.7, np.array([1, 4, 9]), renormalize=True),
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=["plain", "dearer", "cheaper", "renormalized"])
@pytest.mark.parametrize("mode", ["vocab", "legal", "level"])
def test_no_leaf_that_was_not_found_scores_above(mode: ScoreMode, penalty: Penalty | None) -> None:
    told = Counter[str]()
    for seed in range(8):
        played = game(seed, mode, penalty)
        every = played.search(played.trie.leaves)
        scores = dict(zip(every.lo.tolist(), every.scores.tolist(), strict=True))
        assert every.ceiling == NOTHING_ABOVE
        for width in (1, 5, 12, 40):
            search = played.search(width)
            missed = [score for leaf, score in scores.items() if leaf not in set(search.lo.tolist())]
            assert search.ceiling is not None
            best = max(missed, default=NOTHING_ABOVE)
            assert best <= search.ceiling
            told["all found" if not missed else "near" if best > search.ceiling - 1 else "far"] += 1
    assert min(told[kind] for kind in ("all found", "near", "far")) > 0


@pytest.mark.parametrize("mode", ["vocab", "legal"])
def test_a_settled_answer_is_that_of_every_wider_search(mode: ScoreMode) -> None:
    told, wrong_without = Counter[bool](), 0
    for seed in range(25):
        played = game(seed, mode)
        brand = np.random.default_rng(seed).integers(0, 8, played.trie.leaves).tolist()
        listing = Listing(diversity=Diversity("brand", 2))
        every = played.search(played.trie.leaves)

        def answer(search: Search, n: int, listing: Listing = listing, brand: list[int] = brand) -> Any:
            rows = [[leaf] for leaf in search.lo.tolist()]
            listed = choose(rows, n, listing, lambda row: (brand[row],))
            return [own[0] for own in listed.rows], listed.last

        for width, n in ((3, 2), (5, 4), (10, 8), (25, 14)):
            search = played.search(width)
            found, last = answer(search, n)
            filled = None if last is None else float(search.scores[last])
            sure = settled(filled, search.ceiling, len(search.lo) == search.question.live_leaves)
            best, _ = answer(every, n)
            if sure:
                assert found == best
            wrong_without += found != best
            told[sure] += 1
    assert told[True] > 10 and told[False] > 10 and wrong_without > 3  # both are said, and it matters


def test_the_last_one_kept_counts_where_something_was_passed_over() -> None:
    scores = np.array([-1.0, -2.0, -2.0], np.float32)
    assert last_kept(scores, width=3, passes_over=True) == -2.0
    assert last_kept(scores, width=3, passes_over=False) == NOTHING_ABOVE
    assert last_kept(scores, width=4, passes_over=True) == NOTHING_ABOVE  # the others have no finite logit
    assert last_kept(scores[:0], width=1, passes_over=True) == NOTHING_ABOVE


@pytest.mark.parametrize(("told", "ceiling"), [(-2.5, -2.5), (-np.inf, NOTHING_ABOVE)])
def test_where_levels_ran_is_said_what_they_passed_over(told: float, ceiling: float) -> None:
    played = game(1)
    question = Question(3, 0, 2, 2, "vocab", played.trie, played.alive)
    search = Search(question, np.zeros(1, np.int32), np.zeros(2, np.int32), np.zeros(1, np.float32), 1)
    search.finish(np.array([-1.0], np.float32), np.array([0], np.int32), False, told)
    assert search.ceiling == ceiling
