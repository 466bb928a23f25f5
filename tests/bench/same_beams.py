"""Whether two searches found the same, and whether what they found are items at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xgr_runtime.catalog import Catalog
from xgr_runtime.cli.bench.judge import SidIndex

TIE, NEAR = 5e-5, 1e-4  # float32 sums in another order: closer scores may come in either order


def same_beams(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Both are (SID, score), best first: the same SIDs in the same order but for ties, scores within 1e-4."""
    if len(ours) != len(theirs):
        return False
    scores = [score for _, score in theirs]
    near = all(abs(a[1] - b) < NEAR for a, b in zip(ours, scores, strict=True))
    moved = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if list(a[0]) != list(b[0])]
    tied = all(any(j != i and abs(scores[i] - s) < TIE for j, s in enumerate(scores)) for i in moved)
    return near and tied


def share_in_catalog(catalog: Catalog, answers: Sequence[Sequence[Any]]) -> float | None:
    """Of all SIDs in the answers; None where there are none."""
    sids = [tuple(sid) for beams in answers for sid, _ in beams]
    return 1 - SidIndex(catalog).unknown(sids) / len(sids) if sids else None


def share_found(pairs: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> float | None:
    """Of our SIDs, those that they found as well; pairs of our answer and theirs. None where we have none."""
    sids = [({tuple(sid) for sid, _ in ours}, {tuple(sid) for sid, _ in theirs}) for ours, theirs in pairs]
    total = sum(len(ours) for ours, _ in sids)
    return sum(len(ours & theirs) for ours, theirs in sids) / total if total else None
