"""POST /score against brute force: each candidate's tokens, given to Hugging Face's model SID by SID."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import Cluster
from items import Items, Sid
from oracle import Oracle
from sameness import SCORE, TIE
from until import PATIENCE, until
from ways import Served

from xgr_kernels.trie import ScoreMode
from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import ScoreAnswer

MODES: list[ScoreMode] = ["vocab", "legal"]
TOGETHER = 64  # SIDs that brute force takes at once


def brute_force(
    oracle: Oracle, prompt: Sequence[int], items: Items, sids: Sequence[Sid], mode: ScoreMode
) -> list[float]:
    """The score of each SID."""
    parts = [sids[first : first + TOGETHER] for first in range(0, len(sids), TOGETHER)]
    return [score for part in parts for score in oracle.scores(prompt, items, part, mode)]


def assert_scores(answer: ScoreAnswer, sids: Sequence[Sid], expected: Sequence[float]) -> None:
    """An entry for each SID, in this order, with this score, ranked by the scores."""
    assert [tuple(one.output_ids) for one in answer.candidates] == [*sids]
    found = [one.cumulative_logprob for one in answer.candidates]
    assert found == pytest.approx(expected, abs=SCORE, rel=0)
    distinct = {sid: score for sid, score in zip(sids, found, strict=True) if score is not None}
    for sid, one in zip(sids, answer.candidates, strict=True):
        assert one.rank == 1 + sum(score > distinct[sid] for score in distinct.values())


@pytest.mark.parametrize("mode", MODES)
def test_equals_brute_force(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]], mode: ScoreMode
) -> None:
    for seed, prompt in enumerate(prompts[::4]):
        chosen = random.Random(seed).sample(sorted(items.sids), 60)
        sids = [items.sids[item] for item in chosen]
        answer = client.score(input_ids=prompt, items=chosen, score_mode=mode)
        assert_scores(answer, sids, brute_force(oracle, prompt, items, sids, mode))


def test_as_many_as_a_thousand(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]]
) -> None:
    """In the real catalog so many; the generated one has fewer, and all of them are asked."""
    chosen = random.Random(3).sample(sorted(items.sids), min(1000, len(items.sids)))
    sids = [items.sids[item] for item in chosen]
    answer = client.score(input_ids=prompts[2], sids=sids)
    assert_scores(answer, sids, brute_force(oracle, prompts[2], items, sids, "vocab"))
    assert answer.meta_info.scored_sids == len(set(sids))


@pytest.mark.parametrize("mode", MODES)
def test_scores_are_those_of_generate_with_the_same_filters(
    client: XgrClient, items: Items, prompts: list[list[int]], mode: ScoreMode
) -> None:
    """A legal softmax is over what the filters let live, and over no fewer: candidates take nothing away."""
    names = random.Random(11).sample(sorted(items.sids), 200)
    denied = names[:40]
    best = client.generate(input_ids=prompts[5], beam_width=300, score_mode=mode, allow=names, deny=denied)
    wanted = {tuple(r.output_ids): r.meta_info for r in best.meta_info.beam_results}
    asked = names[30:70]
    scored = client.score(input_ids=prompts[5], items=asked, score_mode=mode, allow=names, deny=denied)
    found = scored.candidates
    assert [one.why for one in found] == ["filtered"] * 10 + [None] * 30
    for one in found[10:]:
        meta = wanted[tuple(one.output_ids)]
        assert one.cumulative_logprob == pytest.approx(meta.cumulative_logprob, abs=TIE, rel=0)
        assert one.sequence_score == pytest.approx(meta.sequence_score, abs=TIE, rel=0)


@pytest.mark.timeout(600)
def test_every_way_of_the_prompt(
    served: Served, oracle: Oracle, items: Items, prompts: list[list[int]]
) -> None:
    chosen = random.Random(7).sample(sorted(items.sids), 24)
    sids = [items.sids[item] for item in chosen]
    with served.cluster.client() as client:
        answer = client.score(input_ids=prompts[7], items=chosen, score_mode="legal", timeout_ms=120_000)
        assert_scores(answer, sids, brute_force(oracle, prompts[7], items, sids, "legal"))
        served.cluster.settled()


@pytest.mark.timeout(600)
def test_a_killed_worker_costs_no_scores(
    checkpoint: Path, catalog_source: Path, oracle: Oracle, items: Items, prompts: list[list[int]]
) -> None:
    """It dies over the first of several portions; the other one scores them all."""
    chosen = random.Random(9).sample(sorted(items.sids), 48)
    sids = [items.sids[item] for item in chosen]
    workers = ("decode-0", "decode-1")
    with (
        Cluster(
            checkpoint, catalog_source, decode=2, faulty=workers, max_beam_width=16, silence=60.0
        ) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        hangs = {name: cluster.arm(name, "beams") for name in workers}
        answer = pool.submit(lambda: client.score(input_ids=prompts[4], items=chosen, timeout_ms=240_000))
        until(lambda: any(path.exists() for path in hangs.values()), "its beams are under way")
        (victim,) = [name for name, path in hangs.items() if path.exists()]
        cluster.kill(victim)
        scored = answer.result(PATIENCE)
        assert_scores(scored, sids, brute_force(oracle, prompts[4], items, sids, "vocab"))
        assert scored.meta_info.attempts == 2
        cluster.settled()
