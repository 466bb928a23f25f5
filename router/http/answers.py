"""From an outcome to an answer: leaves become SIDs, text and item ids, a few numpy calls for all results."""

import time

import numpy as np
from tokenizers import Tokenizer

from router.job import Job, Outcome
from xgr_runtime.wire.answers import Answer, BeamMeta, BeamResult, FinishReason, MetaInfo, UnknownItems


def answer(job: Job, outcome: Outcome, tokenizer: Tokenizer, arrival: float) -> Answer:
    """The answer to a job whose request arrived at `arrival` (monotonic)."""
    results = beam_results(job, outcome)
    best = results[0] if results else None
    output_ids = best.output_ids if best else []
    meta = MetaInfo(
        id=job.rid,
        finish_reason=FinishReason("length", len(output_ids)),
        prompt_tokens=len(job.tokens),
        cached_tokens=outcome.cached_tokens,
        completion_tokens=len(output_ids),
        e2e_latency=time.monotonic() - arrival,
        sequence_score=best.meta_info.sequence_score if best else None,
        cumulative_logprob=best.meta_info.cumulative_logprob if best else None,
        catalog_version=job.view.version,
        attempts=outcome.attempts,
        timing=outcome.timing,
        dropped_items=job.dropped_items,
        unknown_items=UnknownItems(job.filter.unknown_allow, job.filter.unknown_deny, job.unknown_history),
        beam_results=results,
    )
    items = best.items if best else []
    return Answer(job.rid, sid_text(tokenizer, output_ids), output_ids, items, meta)


def beam_results(job: Job, outcome: Outcome) -> list[BeamResult]:
    """One entry per leaf of the outcome, in its order, named as the job's version of the catalog does."""
    catalog, filters = job.view.catalog, job.filter
    sids = catalog.sids[outcome.leaves].tolist()
    items = catalog.items_of_leaves(
        outcome.leaves,
        allowed_rows=filters.allowed_rows,
        denied_rows=filters.denied_rows,
        live=filters.live,
    )
    totals = outcome.scores.tolist()
    means = (outcome.scores / np.float32(catalog.emitted_tokens**job.length_penalty)).tolist()
    return [
        BeamResult(sid, names, BeamMeta(mean, total))
        for sid, names, mean, total in zip(sids, items, means, totals, strict=True)
    ]


def sid_text(tokenizer: Tokenizer, sid: list[int]) -> str:
    """Tokens one by one: a decoder for prose would put spaces between them."""
    return "".join(tokenizer.decode([token], skip_special_tokens=False) for token in sid)
