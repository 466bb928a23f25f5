"""From an outcome to the answer of /score: one entry for each candidate, as it was asked."""

import time

import numpy as np

from router.job import Job, Outcome
from xgr_runtime.wire.answers import CandidateScore, ScoreAnswer, ScoreMeta, UnknownItems


def score_answer(job: Job, outcome: Outcome, arrival: float) -> ScoreAnswer:
    """The answer to a job with candidates whose request arrived at `arrival` (monotonic)."""
    meta = ScoreMeta(
        id=job.rid,
        prompt_tokens=len(job.tokens),
        cached_tokens=outcome.cached_tokens,
        scored_sids=len(outcome.leaves),
        e2e_latency=time.monotonic() - arrival,
        catalog_version=job.view.version,
        attempts=outcome.attempts,
        timing=outcome.timing,
        dropped_items=job.dropped_items,
        unknown_items=UnknownItems(job.filter.unknown_allow, job.filter.unknown_deny, job.unknown_history),
    )
    return ScoreAnswer(job.rid, candidate_scores(job, outcome), meta)


def candidate_scores(job: Job, outcome: Outcome) -> list[CandidateScore]:
    """Of each entry, in its order."""
    assert job.candidates is not None, "it has some"
    catalog, (*_, asked, why) = job.view.catalog, job.candidates
    sids = catalog.sids[np.maximum(asked, 0)].tolist()
    length = np.float32(catalog.emitted_tokens**job.length_penalty)
    totals, means = outcome.scores.tolist(), (outcome.scores / length).tolist()
    ranks = (np.searchsorted(-outcome.scores, -outcome.scores) + 1).tolist()
    places = {leaf: place for place, leaf in enumerate(outcome.leaves.tolist())}
    answered: list[CandidateScore] = []
    for leaf, sid, reason in zip(asked.tolist(), sids, why, strict=True):
        if reason is not None:
            answered.append(CandidateScore(sid if leaf >= 0 else [], None, None, None, reason))
            continue
        place = places[leaf]
        answered.append(CandidateScore(sid, totals[place], means[place], ranks[place]))
    return answered
