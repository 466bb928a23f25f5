"""How scores are taken: the request's word, else the catalog's; what answers say; what no worker can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import Catalog, Forced, Scoring
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

SCORING = Scoring(
    (Forced(2, False), Forced(1)), (Forced(2), Forced(1), Forced(0, False)), 0.5, "level", 1.25
)  # of which a search emits one before the SID and two behind it


@pytest.fixture
def scored(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> Server:
    items = [str(n) for n in range(catalog.items)]
    sids = catalog.sids[catalog.leaves_of_items(items)]
    server.catalog = dispatch.catalog = build_from_arrays(
        items, sids, template=catalog.template, vocab_size=catalog.vocab_size, scoring=SCORING
    )
    server.set()
    return server


def test_the_catalogs_word(scored: Server, dispatch: FakeDispatch) -> None:
    answer = scored.generate(input_ids=[1, 4], sampling_params={"n": 2}).json()
    (job,) = dispatch.jobs
    assert (job.score_mode, job.repetition_penalty, job.length_penalty) == ("level", 1.25, 0.5)
    for result in answer["meta_info"]["beam_results"]:
        meta = result["meta_info"]
        assert meta["sequence_score"] == pytest.approx(meta["cumulative_logprob"] / 6**0.5, rel=1e-6)
        assert len(result["output_ids"]) == 3
    assert answer["output_ids"] == dispatch.catalog.sids[0].tolist()
    assert answer["meta_info"]["completion_tokens"] == 3


def test_the_requests_word(scored: Server, dispatch: FakeDispatch) -> None:
    said = {"score_mode": "legal", "repetition_penalty": 1, "length_penalty": 0}
    answer = scored.generate(input_ids=[1], sampling_params=said).json()["meta_info"]
    (job,) = dispatch.jobs
    assert (job.score_mode, job.repetition_penalty, job.length_penalty) == ("legal", 1.0, 0.0)
    assert answer["sequence_score"] == answer["cumulative_logprob"]


@pytest.mark.parametrize(
    "prompt", [{"input_ids": [1, 4]}, {"history": ["0", "1"]}, {"text": "<a_1>"}], ids=str
)
def test_what_is_not_scored_ends_the_prompt(
    prompt: dict[str, object], scored: Server, dispatch: FakeDispatch, catalog: Catalog
) -> None:
    answer = scored.generate(**prompt).json()
    scored.catalog = dispatch.catalog = catalog
    scored.set()
    scored.generate(**prompt)
    with_head, without = (job.tokens.tolist() for job in dispatch.jobs)
    assert with_head == [*without, 2]
    assert answer["meta_info"]["prompt_tokens"] == len(with_head)
    assert dispatch.jobs[0].tokens.dtype.name == "int32"


def test_a_prompt_leaves_room_for_it(scored: Server) -> None:
    assert scored.generate(input_ids=[1] * 29).status_code == 200
    assert scored.generate(input_ids=[1] * 30).status_code == 400


@pytest.mark.parametrize("tokens, status", [(3, 200), (6, 200), (4, 400), (8, 400)])
def test_lengths(tokens: int, status: int, scored: Server) -> None:
    asked = {"max_new_tokens": tokens}
    assert scored.generate(input_ids=[1], sampling_params=asked).status_code == status


@pytest.mark.parametrize(
    "asked, field",
    [
        ({}, "score_mode"),
        ({"score_mode": "level", "repetition_penalty": 1}, "score_mode"),
        ({"score_mode": "vocab"}, "repetition_penalty"),
        ({"score_mode": "legal", "repetition_penalty": 1}, None),
    ],
)
def test_workers_with_plain_scores(
    asked: dict[str, object], field: str | None, scored: Server, dispatch: FakeDispatch
) -> None:
    dispatch.pair = Limits(64, 32, plain_scores=True)
    response = scored.generate(input_ids=[1], sampling_params=asked)
    assert response.status_code == (400 if field else 200)
    if field:
        error = response.json()["error"]
        assert error["param"] == f"sampling_params.{field}" and "GPU" in error["message"]
        assert not dispatch.jobs
