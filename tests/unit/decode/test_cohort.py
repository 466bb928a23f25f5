"""How a cohort lies in memory: rows per level, padding, and who runs together."""

from itertools import pairwise

import numpy as np
import pytest
from made_catalogs import build_from_arrays

from decode_worker.engines.cohort import ROW_BUCKETS, StepVectors, choose_cohort, plan_steps
from decode_worker.search import Question, Search
from xgr_kernels.trie import LeafFilter, Trie, leaf_filter, no_filter
from xgr_runtime.model.device.buckets import bucket_for, buckets_up_to

SIDS = np.array([[a, b, c] for a in range(2) for b in range(3) for c in range(4)], np.int32)
CATALOG = build_from_arrays([str(n) for n in range(len(SIDS))], SIDS)
TRIE = CATALOG.trie  # 2 nodes, then 6, then 24 leaves
NOTHING = np.empty(0, np.int32)


def question(width: int, prompt: int = 10, filter: LeafFilter | None = None) -> Question:
    return Question(prompt, 5, width, 1, "vocab", TRIE, filter or no_filter())


def search(width: int, prompt: int = 10) -> Search:
    return Search(question(width, prompt), NOTHING, NOTHING, np.zeros(4, np.float32), 1)


@pytest.mark.parametrize(
    ("width", "beams"), [(1, [1, 1, 1, 1]), (4, [1, 2, 4, 4]), (8, [1, 2, 6, 8]), (99, [1, 2, 6, 24])]
)
def test_beams_of_a_level_are_bounded_by_width_and_by_the_nodes_before_it(
    width: int, beams: list[int]
) -> None:
    assert question(width).beams == beams


@pytest.mark.parametrize(
    ("allow", "deny", "alive"),
    [([3, 9, 17], [], 3), ([3, 9, 17], [9], 2), (None, [0, 1], 22), ([], [], 0)],
    ids=["allow", "allow-and-deny", "deny", "nothing"],
)
def test_a_filter_bounds_beams_by_its_live_leaves(
    allow: list[int] | None, deny: list[int], alive: int
) -> None:
    asked = question(99, filter=leaf_filter(CATALOG.leaves, allow, deny))
    assert asked.live_leaves == alive
    assert asked.beams[1:] == [min(n, alive) for n in (2, 6, 24)]


def test_steps_lay_requests_one_after_the_other() -> None:
    steps = plan_steps([question(4), question(1), question(99)])
    assert [step.level for step in steps] == [0, 1, 2]
    assert [step.offsets.tolist() for step in steps] == [[0, 1, 2, 3], [0, 2, 3, 5], [0, 4, 5, 11]]
    assert steps[-1].out_offsets.tolist() == [0, 4, 5, 29]
    assert all((a.out_offsets == b.offsets).all() for a, b in pairwise(steps))


def test_vectors_name_owners_positions_and_tails_and_pad_harmlessly() -> None:
    questions = [question(4, prompt=10), question(1, prompt=30)]
    step = plan_steps(questions)[2]
    vectors = StepVectors.of(step, questions, bucket=8, tail_tokens=1)
    assert vectors.owner.tolist() == [0, 0, 0, 0, 1, -1, -1, -1]
    assert vectors.positions.tolist() == [11, 11, 11, 11, 31, 0, 0, 0]
    assert vectors.tail_len.tolist() == [1] * 5 + [1] * 3  # padding stores nothing: it has all it may have


def test_the_root_stands_at_the_prompts_last_token_and_has_no_tail() -> None:
    questions = [question(4, prompt=10)]
    vectors = StepVectors.of(plan_steps(questions)[0], questions, bucket=2, tail_tokens=3)
    assert vectors.positions.tolist() == [9, 0] and vectors.tail_len.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("widths", "rows", "requests", "taken"),
    [([4, 4, 4], 12, 8, 3), ([4, 4, 4], 11, 8, 2), ([4, 9, 1], 12, 8, 1), ([1] * 9, 100, 4, 4)],
    ids=["all", "rows", "a-wide-one-is-not-passed", "requests"],
)
def test_a_cohort_takes_the_first_that_fit(widths: list[int], rows: int, requests: int, taken: int) -> None:
    waiting = [search(width) for width in widths]
    assert choose_cohort(waiting, rows, requests) == waiting[:taken]


def test_a_cohort_has_one_depth() -> None:
    flat = Trie(2, (np.arange(2, dtype=np.int32),), (NOTHING,))
    other = Search(Question(1, 0, 1, 1, "vocab", flat, no_filter()), NOTHING, NOTHING, None, 0)
    first = search(4)
    assert choose_cohort([first, other], 100, 8) == [first]
    with pytest.raises(AssertionError, match="one depth"):
        plan_steps([first.question, other.question])


@pytest.mark.parametrize(("rows", "bucket"), [(1, 64), (64, 64), (65, 128), (700, 768), (1000, 1000)])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(rows: int, bucket: int) -> None:
    assert bucket_for(rows, buckets_up_to(1000, ROW_BUCKETS)) == bucket
