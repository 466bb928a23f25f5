"""POST /score against brute force: each candidate's tokens, given to Hugging Face's model SID by SID."""

import random
from collections.abc import Sequence

import pytest
from items import Items, Sid
from oracle import Oracle
from sameness import SCORE

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
