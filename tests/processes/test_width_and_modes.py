"""Widths from one to more than there are leaves, both score modes, and catalogs of any depth."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from items import Items
from oracle import Oracle
from sameness import assert_items, assert_same, ranked
from shared_templates import deployment_of

from xgr_kernels.trie import ScoreMode
from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig

MODES: list[ScoreMode] = ["vocab", "legal"]


@dataclass(frozen=True)
class Small:
    """A deployment of a catalog small enough to score every item."""

    client: XgrClient
    items: Items


@pytest.fixture(scope="module", params=[1, 2, None], ids=["depth=1", "depth=2", "depth=full"])
def small(
    request: pytest.FixtureRequest, items: Items, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Small]:
    """Sixty items; short SIDs are the first tokens of the long ones, so that many items share one."""
    names = random.Random(5).sample(sorted(items.sids), 60)
    chosen = items.only(set(names)).cut(request.param or items.depth)
    index = chosen.write_index(tmp_path_factory.mktemp("small") / "index.json", checkpoint)
    config = ServeConfig(
        model_path=str(checkpoint), catalog=str(index), port=0, kv_bytes=32 << 20, log_level="WARNING"
    )
    with deployment_of(config) as deployment, XgrClient(deployment.url) as client:
        yield Small(client, chosen)


@pytest.mark.parametrize("mode", MODES)
def test_wider_than_the_catalog_gives_each_leaf_once(
    small: Small, oracle: Oracle, prompts: list[list[int]], mode: ScoreMode
) -> None:
    for prompt in prompts[::5]:
        answer = small.client.generate(input_ids=prompt, beam_width=1000, score_mode=mode)
        assert_same(answer, oracle.every_leaf(prompt, small.items, mode))
        assert {sid for sid, _ in ranked(answer)} == small.items.by_sid.keys()
        assert_items(answer, small.items)


@pytest.mark.in_turns("width")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 2, 5, 17], ids="W={}".format)
def test_narrow_beams_of_a_small_catalog(
    small: Small, oracle: Oracle, prompts: list[list[int]], width: int, mode: ScoreMode
) -> None:
    answer = small.client.generate(input_ids=prompts[4], beam_width=width, score_mode=mode)
    assert_same(answer, oracle.beams(prompts[4], small.items, width, mode))


def test_fewer_live_leaves_than_results(small: Small, oracle: Oracle, prompts: list[list[int]]) -> None:
    for count in (1, 3):
        left = small.items.only(set(sorted(small.items.sids)[:count]))
        answer = small.client.generate(input_ids=prompts[1], beam_width=40, n=20, allow=list(left.sids))
        assert_same(answer, oracle.every_leaf(prompts[1], left, "vocab"))
        assert 0 < len(answer.meta_info.beam_results) <= count


@pytest.mark.in_turns("width")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 7, 50, 128], ids="W={}".format)
def test_the_whole_catalog_equals_the_oracle(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]], width: int, mode: ScoreMode
) -> None:
    for prompt in prompts[width % 3 :: 5]:
        answer = client.generate(input_ids=prompt, beam_width=width, score_mode=mode)
        assert_same(answer, oracle.beams(prompt, items, width, mode))
        assert_items(answer, items)


@pytest.mark.parametrize("n", [1, 5, 30], ids="n={}".format)
def test_fewer_results_than_beams_are_the_first_ones(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]], n: int
) -> None:
    answer = client.generate(input_ids=prompts[6], beam_width=30, n=n)
    assert_same(answer, oracle.beams(prompts[6], items, 30)[:n])


def test_what_an_answer_says(client: XgrClient, items: Items, prompts: list[list[int]]) -> None:
    answer = client.generate(input_ids=prompts[3], beam_width=20, rid="one-of-mine")
    meta, best = answer.meta_info, answer.meta_info.beam_results[0]
    assert (answer.rid, meta.id) == ("one-of-mine", "one-of-mine")
    assert (answer.output_ids, answer.items) == (best.output_ids, best.items)
    assert (meta.prompt_tokens, meta.completion_tokens) == (len(prompts[3]), items.depth)
    assert (meta.finish_reason.type, meta.finish_reason.length) == ("length", items.depth)
    scores = [r.meta_info.cumulative_logprob for r in meta.beam_results]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    for result in meta.beam_results:
        mean = result.meta_info.cumulative_logprob / items.depth
        assert result.meta_info.sequence_score == pytest.approx(mean, rel=1e-6)  # a float32 division


def test_the_three_forms_of_a_prompt_are_one(
    client: XgrClient, checkpoint: Path, users: list[list[str]], prompts: list[list[int]], items: Items
) -> None:
    from items import read_tokenizer

    spell = read_tokenizer(checkpoint).id_to_token
    # The tokenizer itself puts the begin token in front of a text.
    text = "".join(str(spell(token)) for token in prompts[2][1:])
    ids = client.generate(input_ids=prompts[2], beam_width=10)
    for other in (
        client.generate(history=users[2], beam_width=10),
        client.generate(text=text, beam_width=10),
    ):
        assert other.meta_info.prompt_tokens == len(prompts[2])
        assert_same(other, ranked(ids))
