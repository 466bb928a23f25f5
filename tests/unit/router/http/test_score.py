"""POST /score: candidates in any order, each with a score or why it has none; bodies that are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import numpy as np
import pytest

from router.query.candidates import find_leaves
from xgr_runtime.catalog import Catalog
from xgr_runtime.catalog.attributes.stored import packed_bits
from xgr_runtime.wire import answers
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

PROMPT = {"input_ids": [1, 4]}


def score(server: Server, **body: object) -> httpx.Response:
    return server.send("POST", "/score", json={**PROMPT, **body})


def scored(server: Server, **body: object) -> list[answers.CandidateScore]:
    """What is said of each candidate."""
    response = score(server, **body)
    assert response.status_code == 200, response.text
    answer = msgspec.json.decode(response.content, type=answers.ScoreAnswer)
    told = sum(one.why is None for one in answer.candidates)
    assert answer.meta_info.scored_sids <= told
    return answer.candidates


def leaf_of(catalog: Catalog, item: str) -> int:
    return int(catalog.leaves_of_items([item])[0])


def ranks(scores: list[float | None]) -> list[int | None]:
    distinct = {score for score in scores if score is not None}
    return [None if score is None else 1 + sum(other > score for other in distinct) for score in scores]


def hide(server: Server, dispatch: FakeDispatch, *items: str) -> None:
    """Serve the catalog with these items hidden."""
    catalog = server.catalog
    hidden = np.array([catalog.item_id(row) in items for row in range(catalog.items)])
    content = replace(catalog.content, hidden=packed_bits(hidden))
    server.catalog = dispatch.catalog = Catalog.from_content(content, catalog.vocab_size)
    server.set()


def test_items_in_the_order_asked(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    asked = ["7", "38", "3", "0", "7", "21"]  # 38 shares the SID of 0
    found = scored(server, items=asked)
    leaves = [leaf_of(catalog, item) for item in asked]
    assert [one.output_ids for one in found] == [catalog.sids[leaf].tolist() for leaf in leaves]
    totals = [one.cumulative_logprob for one in found]
    assert totals == [-(leaf + 1) / 8 for leaf in leaves]
    assert [one.rank for one in found] == ranks(totals)
    assert all(one.sequence_score == pytest.approx((one.cumulative_logprob or 0) / 3) for one in found)
    (job,) = dispatch.jobs
    assert job.candidates is not None and job.candidates.leaves.tolist() == sorted(set(leaves))
    assert job.width == job.results == job.beams == job.live_leaves == len(set(leaves))


def test_sids_and_numbers_mean_the_items(server: Server, catalog: Catalog) -> None:
    sids = catalog.sids[[8, 2, 30]].tolist()
    by_sid = scored(server, sids=sids)
    items = [int(catalog.items_of_leaves([leaf])[0][0]) for leaf in (8, 2, 30)]
    assert by_sid == scored(server, items=items)
    assert [one.cumulative_logprob for one in by_sid] == [-9 / 8, -3 / 8, -31 / 8]


def test_what_has_no_score_says_why(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    hide(server, dispatch, "5", "38")
    found = scored(server, items=["5", "nobody", "38", "0", "9", "4"], filters={"deny": ["9"]})
    assert [one.why for one in found] == ["hidden", "unknown", "hidden", None, "filtered", None]
    assert [one.cumulative_logprob is None for one in found] == [one.why is not None for one in found]
    assert [one.rank is None for one in found] == [one.why is not None for one in found]
    assert found[1].output_ids == [] and found[2].output_ids == found[3].output_ids
    sids = [catalog.sids[leaf_of(catalog, item)].tolist() for item in ("5", "0", "9")]
    by_sid = scored(server, sids=[*sids, [3, 3, 3], [0, 0, 2**31 - 1]], filters={"deny": ["9"]})
    assert [one.why for one in by_sid] == ["hidden", None, "filtered", "unknown", "unknown"]


def test_an_item_is_filtered_and_another_of_its_sid_is_not(server: Server) -> None:
    denied, other = scored(server, items=["0", "38"], filters={"deny": ["0"]})
    assert (denied.why, other.why) == ("filtered", None)
    assert denied.output_ids == other.output_ids
    allowed = scored(server, items=["0", "38", "4"], filters={"allow": ["38", "4"]})
    assert [one.why for one in allowed] == ["filtered", None, None]
    history = scored(
        server, items=["2", "3"], input_ids=None, history=["2"], filters={"exclude_history": True}
    )
    assert [one.why for one in history] == ["filtered", None]


def test_without_a_live_candidate_no_worker_is_asked(server: Server, dispatch: FakeDispatch) -> None:
    found = scored(server, items=["nobody", "4"], filters={"allow": []})
    assert [one.why for one in found] == ["unknown", "filtered"] and dispatch.jobs == []


def test_the_rest_of_the_body_means_what_it_does_in_generate(server: Server, dispatch: FakeDispatch) -> None:
    sampling = {"score_mode": "legal", "length_penalty": 0}
    (one,) = scored(
        server, items=["4"], rid="mine", priority=7, priority_class="batch", sampling_params=sampling
    )
    assert one.sequence_score == one.cumulative_logprob
    server.generate(**PROMPT, rid="mine", priority=7, priority_class="batch", sampling_params=sampling)
    mine, theirs = dispatch.jobs
    assert mine.tokens.tolist() == theirs.tokens.tolist()
    for name in ("rid", "score_mode", "length_penalty", "repetition_penalty", "priority", "filter"):
        ours, others = getattr(mine, name), getattr(theirs, name)
        assert str(ours) == str(others), name


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no candidates": ({}, "items"),
    "both": ({"items": ["1"], "sids": [[3, 11, 19]]}, "items"),
    "none of them": ({"items": []}, "items"),
    "too many": ({"items": ["1"] * 10_001}, "items"),
    "a fraction": ({"items": [1.5]}, "items"),
    "a huge number": ({"items": [2**64]}, "items"),
    "a short SID": ({"sids": [[3, 11, 19], [3, 11]]}, "sids"),
    "no token": ({"sids": [[3, 11, -1]]}, "sids"),
    "a width": ({"items": ["1"], "sampling_params": {"beam_width": 4}}, "sampling_params.beam_width"),
    "a list of results": ({"items": ["1"], "return": {"title": True}}, "return"),
    "two prompts": ({"items": ["1"], "text": "<a_1>"}, "text"),
    "a stranger": ({"items": ["1"], "history": ["nobody"], "input_ids": None}, "history"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_bodies_name_the_field(server: Server, dispatch: FakeDispatch, case: str) -> None:
    body, field = WRONG[case]
    server.set(max_body_bytes=1 << 20)
    response = score(server, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field, response.text
    assert dispatch.jobs == []


def test_a_long_body_is_scored_and_a_giant_one_refused(server: Server, dispatch: FakeDispatch) -> None:
    server.set(max_body_bytes=1 << 22)
    dispatch.pair = Limits(64, 32)
    items = [f"stranger-{n}" for n in range(9_990)] + ["4", "0", "38"]
    found = scored(server, items=items)
    assert [one.why for one in found[:9_990]] == ["unknown"] * 9_990
    assert [one.rank for one in found[9_990:]] == ranks([one.cumulative_logprob for one in found[9_990:]])
    assert score(server, items=["x" * 1000] * 1100).status_code == 413


def test_a_gpu_scores_candidates_over_the_vocabulary(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.pair = Limits(64, 32, plain_scores=True)
    response = score(server, items=["1"], sampling_params={"score_mode": "legal"})
    assert response.status_code == 400 and "send vocab" in response.json()["error"]["message"]
    assert [one.why for one in scored(server, items=["1"])] == [None]


def test_sids_are_found_as_by_looking_at_all() -> None:
    draw = np.random.default_rng(5)
    sids = np.unique(draw.integers(0, 5, (60, 3)), axis=0).astype(np.int32)
    wanted = draw.integers(-1, 6, (500, 3)).astype(np.int32)
    places = {tuple(sid): at for at, sid in enumerate(sids.tolist())}
    assert find_leaves(sids, wanted).tolist() == [places.get(tuple(sid), -1) for sid in wanted.tolist()]
    assert find_leaves(sids, wanted[:0]).tolist() == []
