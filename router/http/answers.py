"""From an outcome to an answer: leaves become SIDs, text and item ids, a few numpy calls for all results."""

import time

import numpy as np
from tokenizers import Tokenizer

from router.http.intake import Ticket
from router.job import Outcome
from xgr_runtime.catalog import Catalog, FilterSpec
from xgr_runtime.wire.answers import Answer, BeamMeta, BeamResult, FinishReason, MetaInfo, UnknownItems


class Composer:
    """Knows the strings of one catalog and one tokenizer."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer) -> None:
        self.catalog = catalog
        self.tokenizer = tokenizer

    def answer(self, ticket: Ticket, outcome: Outcome, arrival: float) -> Answer:
        """The answer to a job whose request arrived at `arrival` (monotonic)."""
        results = self.results(outcome, ticket.filter)
        best = results[0] if results else None
        output_ids = best.output_ids if best else []
        meta = MetaInfo(
            id=ticket.job.rid,
            finish_reason=FinishReason("length", len(output_ids)),
            prompt_tokens=len(ticket.job.tokens),
            cached_tokens=outcome.cached_tokens,
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
        items = self.catalog.items_of_leaves(
            outcome.leaves, allowed_rows=filters.allowed_rows, denied_rows=filters.denied_rows
        )
        totals = outcome.scores.tolist()
        means = (outcome.scores / np.float32(self.catalog.depth)).tolist()
        return [
            BeamResult(sid, names, BeamMeta(mean, total))
            for sid, names, mean, total in zip(sids, items, means, totals, strict=True)
        ]

    def text(self, sid: list[int]) -> str:
        """Tokens one by one: a decoder for prose would put spaces between them."""
        return "".join(self.tokenizer.decode([token], skip_special_tokens=False) for token in sid)
