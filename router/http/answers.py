"""From an outcome to an answer: leaves become SIDs, text and item ids, a few numpy calls for all results."""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import pairwise, repeat
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from tokenizers import Tokenizer

from router.job import Job, Outcome
from router.listing import Listing, Values, by_beam, choose, fields, sample_key, settled, shuffled
from xgr_runtime.catalog import Catalog
from xgr_runtime.wire.answers import (
    Answer,
    BeamMeta,
    BeamResult,
    DiversityFacts,
    FinishReason,
    ItemInfo,
    MetaInfo,
    UnknownItems,
)

MOST_TEXTS = 1 << 14  # of tokens that are kept: the tokenizer takes as long for one as a result does

_NULL = msgspec.Raw(b"null")


class Results(NamedTuple):
    """What an answer lists."""

    beams: NDArray[np.int64]  # [n] of the outcome's, ascending
    rows: NDArray[np.int64]  # of the items, result after result
    begins: NDArray[np.int64]  # [n + 1] where each result's begin
    diversity: DiversityFacts | None = None


def answer(job: Job, outcome: Outcome, tokenizer: Tokenizer, arrival: float) -> Answer:
    """The answer to a job whose request arrived at `arrival` (monotonic)."""
    listed = listed_of(job, outcome)
    results = beam_results(job, outcome, listed)
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
        diversity=listed.diversity,
    )
    items = best.items if best else []
    return Answer(job.rid, sid_text(tokenizer, output_ids), output_ids, items, meta)


def listed_of(job: Job, outcome: Outcome) -> Results:
    """The items that the job's listing takes of those that its filters leave on the outcome's leaves."""
    catalog, filters, listing = job.view.catalog, job.filter, job.listing
    rows, begins = catalog.rows_of_leaves(
        outcome.leaves,
        allowed_rows=filters.allowed_rows,
        denied_rows=filters.denied_rows,
        live=filters.live,
    )
    if not listing.chooses:
        return Results(np.arange(len(outcome.leaves)), rows, begins)
    order: Iterable[list[int]] = by_beam(rows, begins)
    if listing.sample is not None:
        order = shuffled(order, partial(_ids, catalog), sample_key(listing.sample, job.tokens))
    diverse = listing.diversity
    values = None if diverse is None else Values(catalog, rows, diverse.attribute)
    found = choose(order, job.results, listing, values)
    flat = [row for own in found.rows for row in own]
    ends = np.cumsum([0, *map(len, found.rows)])
    facts = None if diverse is None else facts_of(job, outcome, found.last)
    return Results(np.array(found.beams, np.int64), np.array(flat, np.int64), ends, facts)


def facts_of(job: Job, outcome: Outcome, last: int | None) -> DiversityFacts:
    """`last`: the beam that filled the answer, None where beams ran out before."""
    filled = None if last is None else float(outcome.scores[last])
    whole = len(outcome.leaves) == job.live_leaves
    sure = settled(filled, outcome.ceiling, whole)
    return DiversityFacts(len(outcome.leaves), "no" if sure else "unknown")


def _ids(catalog: Catalog, rows: Sequence[int]) -> list[str]:
    return catalog.ids_at(np.array(rows))


def beam_results(job: Job, outcome: Outcome, listed: Results) -> list[BeamResult]:
    """One entry per result, in its order, named as the job's version of the catalog does."""
    catalog, scores = job.view.catalog, outcome.scores[listed.beams]
    sids = catalog.sids[outcome.leaves[listed.beams]].tolist()
    totals = scores.tolist()
    means = (scores / np.float32(catalog.emitted_tokens**job.length_penalty)).tolist()
    names = catalog.ids_at(listed.rows)
    infos = item_infos(catalog, listed.rows, job.listing) if job.listing.informs else None
    return [
        BeamResult(
            sid, names[first:last], BeamMeta(mean, total), None if infos is None else infos[first:last]
        )
        for sid, (first, last), mean, total in zip(
            sids, pairwise(listed.begins.tolist()), means, totals, strict=True
        )
    ]


def item_infos(catalog: Catalog, rows: NDArray[np.int64], listing: Listing) -> list[ItemInfo]:
    """What is asked of the item of each row. Values of attributes stay the JSON that they are."""
    names = listing.attributes
    titles = [title or None for title in catalog.titles_at(rows)] if listing.title else repeat(UNSET)
    texts = catalog.attribute_texts_at(rows) if names else repeat(b"", len(rows))
    known = ({name: own.get(name, _NULL) for name in names} for own in map(fields, texts))
    return [ItemInfo(title, own if names else UNSET) for title, own in zip(titles, known, strict=False)]


def sid_text(tokenizer: Tokenizer, sid: list[int]) -> str:
    """Tokens one by one: a decoder for prose would put spaces between them."""
    return "".join(_token_text(tokenizer, token) for token in sid)


@lru_cache(MOST_TEXTS)
def _token_text(tokenizer: Tokenizer, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False))
