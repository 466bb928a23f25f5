"""Items or SIDs that a request wants scored: to leaves of its version, or why an entry has no score."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.job import Candidates, Job
from xgr_kernels.trie import distinct_sorted
from xgr_runtime.catalog import Catalog, FilterSpec
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.answers import NoScore
from xgr_runtime.wire.messages import MOST_CANDIDATES, Limits

Ints = NDArray[np.int32]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]


class NamedCandidates(NamedTuple):
    """What is to be scored: one of the two."""

    items: Sequence[str] | None = None
    sids: Sequence[Sequence[int]] | None = None


def with_candidates(job: Job, asked: NamedCandidates, limits: Limits | None) -> Job:
    """The job that scores these and searches no others. Raises `BadRequest` naming the field.

    An entry has no score where /generate with the same prompt and filters could never list it.
    """
    if limits is not None and limits.plain_scores and job.score_mode != "vocab":
        raise BadRequest(
            f"score_mode is {job.score_mode}, which /score on a GPU lacks: send vocab, or use --device cpu",
            "sampling_params.score_mode",
        )
    catalog = job.view.catalog
    if asked.sids is not None:
        found, why = _of_sids(catalog, job.filter, _matrix(asked.sids, catalog.depth))
    else:
        found, why = _of_items(catalog, job.filter, asked.items or ())
    scored = np.array([reason is None for reason in why], np.bool_)
    leaves = distinct_sorted(np.sort(found[scored]))
    together = (limits.max_beam_width if limits is not None else 0) or MOST_CANDIDATES
    candidates = Candidates(leaves, together, found, tuple(why))
    return replace(job, width=len(leaves), results=len(leaves), candidates=candidates)


def find_leaves(sids: Ints, wanted: Ints) -> Ints:
    """The row of each of `wanted` [N, depth] among `sids` [leaves, depth], sorted and distinct; -1: none."""
    lo: Places = np.zeros(len(wanted), np.int64)
    hi: Places = np.full(len(wanted), len(sids), np.int64)
    for level in range(sids.shape[1]):
        column, tokens = sids[:, level], wanted[:, level].astype(np.int64)
        lo, hi = _bound(column, tokens, lo, hi), _bound(column, tokens + 1, lo, hi)
    return np.where(lo < hi, lo, -1).astype(np.int32)


def _bound(column: Ints, tokens: Places, lo: Places, hi: Places) -> Places:
    """The first place in each range [lo, hi) of the column whose token is not below the wanted one; or hi."""
    lo, hi = lo.copy(), hi.copy()
    while (open_ := lo < hi).any():
        middle = (lo + hi) // 2
        below = open_ & (column[np.minimum(middle, len(column) - 1)] < tokens)
        lo = np.where(below, middle + 1, lo)
        hi = np.where(open_ & ~below, middle, hi)
    return lo


def _matrix(sids: Sequence[Sequence[int]], depth: int) -> Ints:
    for at, sid in enumerate(sids):
        if len(sid) != depth:
            raise BadRequest(
                f"sids[{at}] has {len(sid)} tokens, every item of this catalog has {depth}: correct it",
                "sids",
            )
    return np.array(sids, np.int32).reshape(len(sids), depth)


def _of_sids(catalog: Catalog, spec: FilterSpec, sids: Ints) -> tuple[Ints, list[NoScore | None]]:
    leaves = find_leaves(catalog.sids, sids)
    known = np.maximum(leaves, 0)
    shown = np.ones(len(leaves), np.bool_)
    if catalog.visible is not None:
        shown = catalog.visible.leaves.holds(known)
    if spec.allow_leaves is not None:
        left = np.isin(known, spec.allow_leaves)
    else:
        left = ~np.isin(known, spec.deny_leaves)
        if spec.live is not None:
            left &= spec.live.leaves.holds(known)
    return leaves, _reasons(leaves >= 0, shown, left)


def _of_items(catalog: Catalog, spec: FilterSpec, items: Sequence[str]) -> tuple[Ints, list[NoScore | None]]:
    rows = catalog.item_rows(items)
    known = np.maximum(rows, 0)
    there = (rows >= 0) & catalog.present(known)
    shown = np.ones(len(rows), np.bool_) if catalog.visible is None else catalog.visible.holds(known)
    left = ~np.isin(known, spec.denied_rows)
    if spec.allowed_rows is not None:
        left &= np.isin(known, spec.allowed_rows)
    if spec.live is not None:
        left &= spec.live.holds(known)
    leaves = np.where(there, catalog.leaf_of_row[known], -1).astype(np.int32)
    return leaves, _reasons(there, shown, left)


def _reasons(known: Flags, shown: Flags, left: Flags) -> list[NoScore | None]:
    """Why each entry has no score, the first reason of three; None: it has one."""
    return [
        None if fine else ("unknown" if not there else "filtered" if visible else "hidden")
        for there, visible, fine in zip(known.tolist(), shown.tolist(), (known & left).tolist(), strict=True)
    ]
