"""What all cases come to: the figures of the table and of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.cli.verify.compare import Lists
    from xgr_runtime.cli.verify.judge import Bounds, Judged


@dataclass(frozen=True)
class Totals:
    """Sums over cases, but for the largest score difference and the mean overlaps."""

    cases: int
    unanswered: int
    prompts_same: int
    prompts_compared: int
    lists_same: int
    swapped: int  # ranks at which ties lie the other way round
    inexact: int  # cases whose list on the other side is none of an exact search
    beams_theirs: int
    illegal_theirs: int
    double_theirs: int
    illegal_ours: int
    double_ours: int
    legal: int  # distinct legal beams of theirs
    missing: int  # of these, not in ours
    score_difference: float | None  # largest
    overlaps: dict[str, float | None]  # mean, by "1", "10", "width"
    dropped: int  # items of histories that did not fit


def total(judged: Sequence[Judged]) -> Totals:
    """Of at least one case."""
    lists = [one.lists for one in judged if one.lists is not None]
    scores = [each.score_difference for each in lists if each.score_difference is not None]
    return Totals(
        cases=len(judged),
        unanswered=len(judged) - len(lists),
        prompts_same=sum(one.prompt == "same" for one in judged),
        prompts_compared=sum(one.prompt != "not compared" for one in judged),
        lists_same=sum(not each.problem for each in lists),
        swapped=sum(each.swapped for each in lists if not each.problem),
        inexact=sum(not each.exact for each in lists),
        beams_theirs=sum(each.theirs for each in lists),
        illegal_theirs=sum(each.illegal_theirs for each in lists),
        double_theirs=sum(each.double_theirs for each in lists),
        illegal_ours=sum(each.illegal_ours for each in lists),
        double_ours=sum(each.double_ours for each in lists),
        legal=sum(each.legal for each in lists),
        missing=sum(each.missing for each in lists),
        score_difference=max(scores, default=None),
        overlaps={name: _mean(lists, name) for name in (lists[0].overlaps if lists else ())},
        dropped=sum(one.dropped for one in judged),
    )


def shortfalls(judged: Sequence[Judged], totals: Totals, bounds: Bounds) -> list[str]:
    """Why it is not enough, a line for each; empty for a pass."""
    found = [f"{one.name}: {problem}" for one in judged if (problem := one.problem(bounds))]
    overlap = totals.overlaps.get("width")
    if bounds.overlap is not None and overlap is not None and overlap < bounds.overlap:
        found.append(f"overlap@width is {overlap:.1%}, the bound is {bounds.overlap:.1%}")
    return found


def _mean(lists: Sequence[Lists], name: str) -> float | None:
    values = [value for each in lists if (value := each.overlaps[name]) is not None]
    return sum(values) / len(values) if values else None
