"""When two rankings are the same: scores that agree, and an order that differs between near ties alone."""

from __future__ import annotations

from items import Items
from oracle import Ranked

from xgr_runtime.wire.answers import Answer

# float32: another batch composition moves a log-probability by about 1e-5, and a score sums a few of them.
TIE = 5e-5
# Against another implementation of the model, which rounds at other places.
SCORE = 1e-4


def ranked(answer: Answer) -> Ranked:
    """SIDs and scores of an answer, best first."""
    return [(tuple(r.output_ids), r.meta_info.cumulative_logprob) for r in answer.meta_info.beam_results]


def difference(ours: Ranked, theirs: Ranked, tolerance: float = SCORE) -> str:
    """Why the rankings are not the same; empty when they are."""
    if len(ours) != len(theirs):
        return f"{len(ours)} results, expected {len(theirs)}"
    scores = dict(theirs)
    for rank, ((sid, score), (other, expected)) in enumerate(zip(ours, theirs, strict=True)):
        if abs(score - expected) > tolerance:
            return f"rank {rank}: score {score}, expected {expected}"
        if sid != other and abs(scores.get(sid, float("inf")) - expected) > TIE:
            return f"rank {rank}: {sid}, expected {other}, and that is no tie"
    return "" if len({sid for sid, _ in ours}) == len(ours) else "a SID comes twice"


def assert_same(answer: Answer, theirs: Ranked, tolerance: float = SCORE) -> None:
    """The answer is that ranking."""
    assert not (found := difference(ranked(answer), theirs, tolerance)), found


def assert_identical(answer: Answer, other: Answer) -> None:
    """Two answers of the product to the same request: the same within `TIE`, and the same items."""
    assert_same(answer, ranked(other), TIE)
    assert {tuple(r.output_ids): r.items for r in answer.meta_info.beam_results} == {
        tuple(r.output_ids): r.items for r in other.meta_info.beam_results
    }


def assert_items(answer: Answer, items: Items) -> None:
    """Every SID carries exactly its items of this (filtered) catalog, and no item comes twice."""
    for result in answer.meta_info.beam_results:
        assert len(set(result.items)) == len(result.items)
        assert set(result.items) == items.by_sid[tuple(result.output_ids)]
