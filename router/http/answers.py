"""From an outcome to an answer: leaves become SIDs, text and item ids, a few numpy calls for all results."""

import itertools
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from router.http.intake import Ticket
from router.job import Outcome
from xgr_runtime.answer import Answer, BeamMeta, BeamResult, FinishReason, MetaInfo, UnknownItems
from xgr_runtime.catalog import Catalog, FilterSpec


class Composer:
    """Knows the strings of one catalog and one tokenizer."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer) -> None:
        self.catalog = catalog
        self.tokenizer = tokenizer
        ids = catalog.content.ids
        self.offsets = ids.offsets
        self.blob = memoryview(ids.blob.data)

    def answer(self, ticket: Ticket, outcome: Outcome, arrival: float) -> Answer:
        """The answer to a job whose request arrived at `arrival` (monotonic)."""
        results = self.results(outcome, ticket.filter)
        best = results[0] if results else None
        output_ids = best.output_ids if best else []
        meta = MetaInfo(
            id=ticket.job.rid,
            finish_reason=FinishReason("length", len(output_ids)),
            prompt_tokens=len(ticket.job.tokens),
            cached_tokens=0,
            completion_tokens=len(output_ids),
            e2e_latency=time.monotonic() - arrival,
            sequence_score=best.meta_info.sequence_score if best else None,
            cumulative_logprob=best.meta_info.cumulative_logprob if best else None,
            catalog_version=ticket.job.catalog,
            attempts=outcome.attempts,
            timing=outcome.timing,
            dropped_items=ticket.dropped_items,
            unknown_items=UnknownItems(ticket.filter.unknown_allow, ticket.filter.unknown_deny),
            beam_results=results,
        )
        items = best.items if best else []
        return Answer(ticket.job.rid, self.text(output_ids), output_ids, items, meta)

    def results(self, outcome: Outcome, filters: FilterSpec) -> list[BeamResult]:
        """One entry per leaf of the outcome, in its order."""
        sids = self.catalog.sids[outcome.leaves].tolist()
        items = self.items(outcome.leaves, filters)
        totals = outcome.scores.tolist()
        means = (outcome.scores / np.float32(self.catalog.depth)).tolist()
        return [
            BeamResult(sid, names, BeamMeta(mean, total))
            for sid, names, mean, total in zip(sids, items, means, totals, strict=True)
        ]

    def items(self, leaves: NDArray[np.int32], filters: FilterSpec) -> list[list[str]]:
        """Item ids of each leaf [n] in collision order, without those that the filters drop."""
        lo, hi = self.catalog.item_lo[leaves], self.catalog.item_lo[leaves + 1]
        sizes = hi - lo
        ends = np.cumsum(sizes)
        rows = np.repeat(lo - (ends - sizes), sizes) + np.arange(sizes.sum())
        keep = kept(rows, filters)
        if keep is not None:
            ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])[ends]
            rows = rows[keep]
        names = self.names(rows)
        cuts = [0, *ends.tolist()]
        return [names[a:b] for a, b in itertools.pairwise(cuts)]

    def names(self, rows: NDArray[Any]) -> list[str]:
        """Item ids of rows [N]."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        blob = self.blob
        return [str(blob[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    def text(self, sid: list[int]) -> str:
        """Tokens one by one: a decoder for prose would put spaces between them."""
        return "".join(self.tokenizer.decode([token], skip_special_tokens=False) for token in sid)


def kept(rows: NDArray[Any], filters: FilterSpec) -> NDArray[np.bool_] | None:
    """Which rows [N] the filters leave; None: all. The allowed rows already lack the denied ones."""
    if filters.allowed_rows is not None:
        return among(rows, filters.allowed_rows)
    if len(filters.denied_rows):
        return ~among(rows, filters.denied_rows)
    return None


def among(rows: NDArray[Any], members: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which rows [N] are in the sorted distinct `members`."""
    if not len(members):
        return np.zeros(len(rows), np.bool_)
    at = np.minimum(np.searchsorted(members, rows), len(members) - 1)
    found: NDArray[np.bool_] = members[at] == rows
    return found
