"""Two ranked lists of one prompt held against each other: plain data in, plain data out.

Where the other side's list holds what is no item, its search was another one than an exact search over the
catalog. Then each of its legal beams must be in ours, in its order, with its score: the beams of an exact
search are a superset of the legal ones of a looser search of the same width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xgr_runtime.cli.verify.terms import Ranked, Sid

# float32: another batch composition moves a log-probability by about 1e-5, and a score sums a few of them.
TIE = 5e-5
FIXED = {"1": 1, "10": 10}  # of overlap@k, beside the width


@dataclass(frozen=True)
class Lists:
    """What a comparison of two lists found. `theirs`, `ours`: numbers of beams that were looked at."""

    theirs: int
    ours: int
    illegal_theirs: int  # beams that are no item
    illegal_ours: int
    double_theirs: int  # beams beyond the first of their kind
    double_ours: int
    legal: int  # distinct legal beams of theirs
    missing: int  # of these, which ours should hold and does not
    swapped: int  # ranks at which ties lie the other way round
    problem: str  # the first thing that makes the lists different, else empty
    score_difference: float | None  # largest, over SIDs of both lists
    overlaps: dict[str, float | None]  # by "1", "10", "width": see `_overlap`

    @property
    def exact(self) -> bool:
        """Whether theirs can be the list of an exact search over the catalog."""
        return not self.illegal_theirs and not self.double_theirs


def compare(
    ours: Ranked,
    theirs: Sequence[tuple[Sid | None, float | None]],
    is_item: Callable[[Sid], bool],
    width: int,
) -> Lists:
    """Of one prompt, both best first; a beam of theirs without SID is None. `ours` is a whole answer."""
    legal = _distinct([(sid, score) for sid, score in theirs if sid is not None and is_item(sid)])
    illegal = sum(sid is None or not is_item(sid) for sid, _ in theirs)
    double = len(theirs) - illegal - len(legal)
    exact = not illegal and not double
    shown = ours[: len(theirs)] if exact else ours
    swapped, problem, missing = _differences(shown, legal, exact)
    return Lists(
        theirs=len(theirs),
        ours=len(ours),
        illegal_theirs=illegal,
        illegal_ours=sum(not is_item(sid) for sid, _ in ours),
        double_theirs=double,
        double_ours=len(ours) - len(_distinct(ours)),
        legal=len(legal),
        missing=missing,
        swapped=swapped,
        problem=problem,
        score_difference=_score_difference(ours, legal),
        overlaps={name: _overlap(ours, theirs, legal, k) for name, k in (*FIXED.items(), ("width", width))},
    )


def _distinct(beams: Ranked) -> Ranked:
    """The first of each SID."""
    return list({sid: (sid, score) for sid, score in reversed(beams)}.values())[::-1]


def _differences(ours: Ranked, legal: Ranked, exact: bool) -> tuple[int, str, int]:
    """(ranks where ties are swapped, what is different, legal beams that ours lacks)."""
    our_scores, expected = dict(ours), dict(legal)
    lost = [(sid, score) for sid, score in legal if sid not in our_scores and not _at_cut(score, ours)]
    problem = f"{len(lost)} legal beams of theirs are not in ours, first {list(lost[0][0])}" if lost else ""
    if not problem and exact and len(ours) != len(legal):
        problem = f"{len(ours)} results, theirs has {len(legal)}"
    # Where theirs is no exact search ours holds items between and behind its legal beams.
    common = ours if exact else [(sid, score) for sid, score in ours if sid in expected]
    swapped = 0
    for rank, ((sid, score), (other, wanted)) in enumerate(zip(common, legal, strict=False)):
        if sid == other:
            continue
        swapped += 1
        if not problem and not _tie(expected.get(sid, score), wanted):
            problem = f"rank {rank}: {list(sid)}, theirs has {list(other)}, and that is no tie"
    return swapped, problem, len(lost)


def _tie(one: float | None, other: float | None) -> bool:
    """Scores that are not known tell no order."""
    return one is not None and other is not None and abs(one - other) <= TIE


def _at_cut(score: float | None, ours: Ranked) -> bool:
    """Whether a beam of that score ties with the last of ours, so that either may be cut off."""
    return bool(ours) and _tie(score, ours[-1][1])


def _score_difference(ours: Ranked, legal: Ranked) -> float | None:
    scores = dict(ours)
    both = [(scores[sid], score) for sid, score in legal if sid in scores]
    found = [abs(mine - score) for mine, score in both if mine is not None and score is not None]
    return max(found, default=None)


def _overlap(
    ours: Ranked, theirs: Sequence[tuple[Sid | None, float | None]], legal: Ranked, k: int
) -> float | None:
    """Share of the legal ones among their first k that are among our first k; None where there is none."""
    k = min(k, len(theirs))
    known = {sid for sid, _ in legal}
    best = {sid for sid, _ in theirs[:k] if sid in known}
    return len(best & {sid for sid, _ in ours[:k]}) / len(best) if best else None
