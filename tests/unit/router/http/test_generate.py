"""POST /generate: prompts, widths, filters and the shape of the answer."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_catalogs import items_of_leaf

from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

    from xgr_runtime.catalog import Catalog


def best(catalog: Catalog, leaf: int) -> dict[str, Any]:
    """The beam result that the dispatcher's scores give `leaf`."""
    total = float(np.float32(-(leaf + 1) / 8))
    mean = float(np.float32(total) / np.float32(catalog.depth))
    return {
        "output_ids": catalog.sids[leaf].tolist(),
        "items": items_of_leaf(catalog, leaf),
        "meta_info": {"sequence_score": mean, "cumulative_logprob": total},
    }


def test_answer_has_the_fixed_shape(server: Server, catalog: Catalog) -> None:
    answer = server.generate(
        history=["0", 5], rid="mine", sampling_params={"beam_width": 4, "n": 2}, filters={"deny": ["nope"]}
    ).json()
    meta = answer["meta_info"]
    latency = meta.pop("e2e_latency")
    assert 0 < latency < 60
    first, second = best(catalog, 0), best(catalog, 1)
    assert meta == {
        "id": "mine",
        "finish_reason": {"type": "length", "length": 3},
        "prompt_tokens": 7,
        "cached_tokens": 6,
        "completion_tokens": 3,
        **first["meta_info"],
        "catalog_version": catalog.version,
        "attempts": 1,
        "timing": {
            "queue": 0.001,
            "prefill": 0.002,
            "transfer": 0.003,
            "decode": 0.004,
            "forward": 0.0025,
            "wait": 0.0,
        },
        "dropped_items": 0,
        "unknown_items": {"allow": 0, "deny": 1, "history": 0},
        "beam_results": [first, second],
    }
    assert answer["rid"] == "mine"
    assert (answer["output_ids"], answer["items"]) == (first["output_ids"], first["items"])
    names = [f"<{'abc'[level]}_{token - 3 - 8 * level}>" for level, token in enumerate(first["output_ids"])]
    assert answer["text"] == "".join(names)


def test_job_carries_what_was_asked(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    server.generate(
        input_ids=[1, 4, 12],
        timeout_ms=1500,
        sampling_params={"beam_width": 6, "n": 3, "score_mode": "legal"},
    )
    (job,) = dispatch.jobs
    assert job.tokens.dtype == np.int32
    assert job.tokens.tolist() == [1, 4, 12]
    assert (job.width, job.results, job.score_mode, job.view.version) == (6, 3, "legal", catalog.version)
    assert job.allow is None
    assert job.deny.tolist() == []


def test_defaults_are_the_deployments(server: Server, dispatch: FakeDispatch) -> None:
    answers = [server.generate(input_ids=[1]).json() for _ in range(2)]
    assert [(job.width, job.results, job.score_mode) for job in dispatch.jobs] == [(10, 10, "vocab")] * 2
    assert answers[0]["rid"] != answers[1]["rid"]


@pytest.mark.parametrize(("asked", "seconds"), [(None, 30), (600_000, 600)], ids=["default", "600s"])
def test_deadline_counts_from_arrival(
    server: Server, dispatch: FakeDispatch, asked: int | None, seconds: int
) -> None:
    before = time.monotonic()
    server.generate(input_ids=[1], timeout_ms=asked)
    after = time.monotonic()
    assert before + seconds <= dispatch.jobs[0].deadline <= after + seconds


def test_history_follows_the_template(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    history = [str(i) for i in range(12)]
    meta = server.generate(history=history).json()["meta_info"]
    kept = catalog.leaves_of_items(history[-8:])  # the template keeps 8, the limit of 30 tokens would keep 9
    assert dispatch.jobs[0].tokens.tolist() == [1, *catalog.sids[kept].ravel().tolist()]
    assert (meta["dropped_items"], meta["prompt_tokens"]) == (4, 25)


def test_history_is_cut_to_the_token_limit(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.pair = Limits(max_prompt_tokens=8, max_beam_width=32)
    meta = server.generate(history=["1", "2", "3"]).json()["meta_info"]
    assert (meta["dropped_items"], meta["prompt_tokens"]) == (1, 7)


def test_empty_history_is_a_new_user(server: Server, dispatch: FakeDispatch) -> None:
    assert server.generate(history=[]).status_code == 200
    assert dispatch.jobs[0].tokens.tolist() == [1]


def test_unknown_items_of_a_history(server: Server, dispatch: FakeDispatch) -> None:
    refused = server.generate(history=["1", "gone", "2", "?"], unknown_history="refuse")
    assert refused.status_code == 400 and 'unknown_history to "drop"' in refused.json()["error"]["message"]
    assert "history[1] is 'gone'" in refused.text and "(2 unknown in all)" in refused.text
    dropped = server.generate(history=["1", "gone", "2", "?"]).json()["meta_info"]
    assert dropped["unknown_items"]["history"] == 2
    known = server.generate(history=["1", "2"]).json()["meta_info"]
    assert known["unknown_items"]["history"] == 0
    assert dispatch.jobs[0].tokens.tolist() == dispatch.jobs[1].tokens.tolist()
    for unusable in (["gone"], ["gone", "?"]):
        nothing = server.generate(history=unusable, unknown_history="drop")
        assert nothing.status_code == 400 and "send one that it holds" in nothing.text
    assert server.generate(history=[], unknown_history="drop").status_code == 200
    assert server.generate(history=["1"], unknown_history="keep").status_code == 400


@pytest.mark.parametrize("item", [(1 << 64) - 1, 13570027672830659665, -(1 << 63)])
def test_items_may_be_numbers_of_64_bits(server: Server, item: int) -> None:
    answer = server.generate(history=["1", item], unknown_history="drop", filters={"deny": [item]})
    counted = answer.json()["meta_info"]["unknown_items"]
    assert (counted["history"], counted["deny"]) == (1, 1)


@pytest.mark.parametrize("item", [1 << 64, -(1 << 63) - 1, 10**4000])
@pytest.mark.parametrize("field", ["history", "filters.allow", "filters.deny"])
def test_longer_numbers_are_refused_and_not_repeated(server: Server, item: int, field: str) -> None:
    fields = {"history": ["1"]} | ({"history": [item]} if field == "history" else {})
    if field != "history":
        fields |= {"filters": {field.removeprefix("filters."): [item]}}  # type: ignore[dict-item]
    refused = server.generate(**fields)
    assert refused.status_code == 400 and len(refused.text) < 400
    assert f"{field}[0]" in refused.text


def test_text_goes_through_the_tokenizer(server: Server, dispatch: FakeDispatch) -> None:
    assert server.generate(text="<a_0><b_1><pad>").status_code == 200
    assert dispatch.jobs[0].tokens.tolist() == [1, 3, 12, 0]


def test_long_text_is_tokenized_off_the_loop(server: Server, dispatch: FakeDispatch) -> None:
    server.set(max_body_bytes=1 << 20, max_prompt_tokens=None)
    dispatch.pair = Limits(max_prompt_tokens=20_000)
    assert server.generate(text="<a_0>" * 10_000).status_code == 200
    assert len(dispatch.jobs[0].tokens) == 10_001


def test_shared_sid_lists_its_items(server: Server, catalog: Catalog) -> None:
    answer = server.generate(input_ids=[1], filters={"allow": ["0", "38"]}).json()
    assert answer["items"] == ["0", "38"]
    assert len(answer["meta_info"]["beam_results"]) == 1


def test_denied_item_leaves_a_shared_sid(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    dispatch.pair = Limits(64, 64)
    server.set(max_beam_width=64)
    every = server.generate(input_ids=[1], filters={"deny": [0]}, sampling_params={"beam_width": 64}).json()
    assert dispatch.jobs[0].deny.tolist() == []
    denied = catalog.item_rows(["0"])
    expected = [items_of_leaf(catalog, leaf, denied_rows=denied) for leaf in range(catalog.leaves)]
    assert [result["items"] for result in every["meta_info"]["beam_results"]] == expected
    only = server.generate(input_ids=[1], filters={"allow": [0, 38], "deny": ["0"]}).json()
    assert only["items"] == ["38"]


def test_item_outside_the_allow_list_leaves_a_shared_sid(server: Server) -> None:
    assert server.generate(input_ids=[1], filters={"allow": ["39"]}).json()["items"] == ["39"]


def test_no_live_leaf_is_an_empty_answer(server: Server) -> None:
    response = server.generate(input_ids=[1], filters={"allow": []})
    answer = response.json()
    meta = answer["meta_info"]
    assert response.status_code == 200
    assert (answer["output_ids"], answer["items"], answer["text"]) == ([], [], "")
    assert (meta["beam_results"], meta["sequence_score"], meta["cumulative_logprob"]) == ([], None, None)
    assert meta["finish_reason"] == {"type": "length", "length": 0}


def test_exclude_history_denies_its_items(server: Server, dispatch: FakeDispatch, catalog: Catalog) -> None:
    response = server.generate(history=["5", "0"], filters={"exclude_history": True, "deny": ["7"]})
    leaves = catalog.leaves_of_items(["5", "7"])  # item 0 shares its SID with 38, which stays
    assert response.status_code == 200
    assert dispatch.jobs[0].deny.tolist() == sorted(leaves.tolist())


def test_unknown_filter_items_are_counted(server: Server) -> None:
    filters = {"allow": ["x", "1", "y"], "deny": ["z"]}
    meta = server.generate(input_ids=[1], filters=filters).json()["meta_info"]
    assert meta["unknown_items"] == {"allow": 2, "deny": 1, "history": 0}


def test_underfill_is_shorter_and_counted(server: Server) -> None:
    answer = server.generate(input_ids=[1], filters={"allow": ["1", "2"]}, sampling_params={"n": 10}).json()
    assert len(answer["meta_info"]["beam_results"]) == 2
    assert "xgr_requests_underfilled_total 1.0" in server.get("/metrics").text


def test_stream_is_one_event(server: Server) -> None:
    plain = server.generate(input_ids=[1], rid="a").json()
    response = server.generate(input_ids=[1], rid="a", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    event, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    streamed = json.loads(event.removeprefix("data: "))
    for answer in (plain, streamed):
        del answer["meta_info"]["e2e_latency"]
    assert streamed == plain


def test_stream_reports_errors_by_status(server: Server) -> None:
    assert server.generate(input_ids=[], stream=True).status_code == 400


NEUTRAL = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"max_new_tokens": 3},
    {"min_new_tokens": 0},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 1 << 30},
    {"min_p": 0},
    {"frequency_penalty": 0, "presence_penalty": 0.0},
    {"stop": None},
    {"stop": []},
    {"stop": ""},
    {"stop_token_ids": [], "stop_regex": []},
    {"json_schema": None, "regex": None, "ebnf": None, "structural_tag": None},
    {"logit_bias": {}, "custom_params": {}},
    {"ignore_eos": True, "skip_special_tokens": False, "no_stop_trim": True},
    {"spaces_between_special_tokens": False, "stream_interval": 4, "sampling_seed": 9},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=lambda fields: "-".join(map(str, fields)))
def test_neutral_sampling_fields_are_accepted(server: Server, fields: dict[str, object]) -> None:
    assert server.generate(input_ids=[1], sampling_params=fields).status_code == 200


NEUTRAL_TOP = [
    {"return_logprob": False, "logprob_start_len": -1, "top_logprobs_num": 0, "token_ids_logprob": []},
    {"image_data": None, "video_data": [], "audio_data": None, "modalities": [], "input_embeds": None},
    {"lora_path": None, "session_params": None, "custom_logit_processor": None, "priority": 0},
    {"log_metrics": True, "return_text_in_logprobs": True, "return_bytes": True, "conversation_id": "c"},
    {
        "sampling_params": None,
        "filters": None,
        "rid": None,
        "timeout_ms": None,
        "text": None,
        "history": None,
    },
]


@pytest.mark.parametrize("fields", NEUTRAL_TOP, ids=lambda fields: next(iter(fields)))
def test_neutral_request_fields_are_accepted(server: Server, fields: dict[str, object]) -> None:
    assert server.generate(input_ids=[1], **fields).status_code == 200
