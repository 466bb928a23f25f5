"""A search's beams: the ancestor table is a physical permutation that was never carried out."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.search import Question, Search
from xgr_kernels.trie import Trie, no_filter

DEPTH, LEAVES = 5, 40


def new_search(width: int, results: int, rows: np.ndarray) -> Search:
    trie = Trie(LEAVES, (np.zeros(1, np.int32),) * DEPTH, (np.zeros(1, np.int32),) * DEPTH)
    question = Question(3, 0, width, results, "vocab", trie, no_filter())
    return Search(question, np.zeros(1, np.int32), rows, np.zeros(4, np.float32), DEPTH - 2)


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_ancestors_equal_a_physical_permutation(width: int, random: Random) -> None:
    rows = np.array(random.sample(range(50), width), np.int32)
    search = new_search(width, 1, rows)
    carried: list[list[tuple[int, int]]] = [[]]  # per beam, the (slot, row) where each token's KV lies
    for level in range(DEPTH):
        n = random.randint(1, width)
        parents = np.array([random.randrange(len(carried)) for _ in range(n)], np.int32)
        if level:  # this forward wrote the beams' newest tokens
            carried = [[*path, (level - 1, int(rows[beam]))] for beam, path in enumerate(carried)]
        carried = [carried[p] for p in parents]
        some = np.arange(n, dtype=np.int32)
        search.advance(some.astype(np.float32), some, parents, some, some)
        known = min(search.level - 1, DEPTH - 2)
        for beam, path in enumerate(carried):
            assert [(t, int(search.anc[beam, t])) for t in range(known)] == path[:known]
    assert search.over


def test_a_search_without_live_beams_is_over_and_empty() -> None:
    search = new_search(4, 2, np.arange(4, dtype=np.int32))
    nothing = np.zeros(0, np.int32)
    search.advance(np.zeros(0, np.float32), nothing, nothing, nothing, nothing)
    assert search.over
    leaves, scores = search.answer()
    assert not len(leaves) and not len(scores)


def test_beams_never_outnumber_leaves() -> None:
    assert new_search(1000, 1, np.arange(LEAVES, dtype=np.int32)).question.most_beams == LEAVES
