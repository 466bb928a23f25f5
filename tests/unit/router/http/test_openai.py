"""OpenAI's two routes: answers of /generate in its dialect, and what cannot be had, named as it was sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from xgr_runtime.errors import Overloaded

if TYPE_CHECKING:
    import httpx
    from conftest import FakeDispatch, Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SID = "<a_0><b_0><c_0>"
ASK = [{"role": "user", "content": SID}]


def send(server: Server, path: str, **body: Any) -> httpx.Response:
    return server.send("POST", path, json=body)


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


def test_a_completion_is_the_answer_of_generate(server: Server) -> None:
    plain = server.generate(text=SID, sampling_params={"n": 3}).json()
    answer = send(server, COMPLETIONS, prompt=SID, n=3, max_tokens=16, temperature=0).json()
    results = plain["meta_info"]["beam_results"]
    assert [choice["xgr"] for choice in answer["choices"]] == results
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["choices"][0]["text"] == plain["text"] and plain["text"].startswith("<a_")
    assert answer["object"] == "text_completion" and answer["model"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    prompt = plain["meta_info"]["prompt_tokens"]
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 9,
        "total_tokens": prompt + 9,
        "prompt_tokens_details": {"cached_tokens": plain["meta_info"]["cached_tokens"]},
    }
    (facts,) = answer["xgr"]
    assert facts["catalog_version"] == plain["meta_info"]["catalog_version"] and not facts["beam_results"]


def test_each_prompt_is_answered_by_itself(server: Server, dispatch: FakeDispatch) -> None:
    for prompts in ([SID, "<a_1>"], [[3, 11], [4, 12, 19]]):
        answer = send(server, COMPLETIONS, prompt=prompts, n=2).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert len(answer["xgr"]) == 2
        assert len({job.rid for job in dispatch.jobs[-2:]}) == 2
    assert [job.tokens.tolist() for job in dispatch.jobs[-2:]] == [[3, 11], [4, 12, 19]]
    send(server, COMPLETIONS, prompt=[3, 11])
    assert dispatch.jobs[-1].tokens.tolist() == [3, 11]


def test_one_prompt_that_fails_fails_all(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.error = Overloaded("full")
    assert send(server, COMPLETIONS, prompt=[SID, SID]).status_code == 503


def test_the_width_is_what_the_results_need(server: Server, dispatch: FakeDispatch) -> None:
    default = server.get("/server_info").json()["default_beam_width"]
    for body, width, results in (
        ({}, default, 1),
        ({"n": 4}, default, 4),
        ({"n": 4, "use_beam_search": True}, 4, 4),
        ({"n": default + 1}, default + 1, default + 1),
        ({"n": 4, "xgr": {"sampling_params": {"beam_width": 7}}, "use_beam_search": True}, 7, 4),
        ({"xgr": {"sampling_params": {"beam_width": 7, "n": 5}}}, 7, 5),
    ):
        assert send(server, COMPLETIONS, prompt=SID, **body).status_code == 200
        assert (dispatch.jobs[-1].width, dispatch.jobs[-1].results) == (width, results)


def test_a_history_with_filters_is_an_extension(server: Server, dispatch: FakeDispatch) -> None:
    own = {"history": ["0", "1"], "filters": {"deny": ["2"]}, "return": {"title": True}}
    answer = send(server, COMPLETIONS, n=3, xgr=own).json()
    plain = server.generate(**own, sampling_params={"n": 3}).json()
    assert [choice["xgr"] for choice in answer["choices"]] == plain["meta_info"]["beam_results"]
    assert "item_info" in answer["choices"][0]["xgr"]
    assert send(server, CHAT, n=3, xgr=own).json()["choices"][0]["message"]["content"] == plain["text"]


def test_a_chat_answers_with_messages(server: Server, dispatch: FakeDispatch) -> None:
    said = send(server, CHAT, messages=ASK, n=2, max_completion_tokens=3).json()
    assert said["object"] == "chat.completion"
    assert [choice["message"]["role"] for choice in said["choices"]] == ["assistant"] * 2
    assert said["choices"][0]["message"]["content"].startswith("<a_")
    assert "delta" not in said["choices"][0]


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stream_is_whole_in_one_piece(server: Server, path: str) -> None:
    own = {"history": ["0"]}
    (piece,) = events(send(server, path, n=2, xgr=own, stream=True))
    assert len(piece["choices"]) == 2 and piece["usage"] is None
    said = piece["choices"][0]["text"] if path == COMPLETIONS else piece["choices"][0]["delta"]["content"]
    assert said.startswith("<a_")
    _, last = events(send(server, path, n=2, xgr=own, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {}, "prompt"),
        (CHAT, {}, "messages"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", 3]}, "prompt"),
        (COMPLETIONS, {"prompt": ["x", [3]]}, "prompt"),
        (COMPLETIONS, {"prompt": [SID] * 65}, "prompt"),
        (COMPLETIONS, {"prompt": SID, "xgr": {"history": ["0"]}}, "xgr.history"),
        (CHAT, {"messages": ASK, "xgr": {"text": SID}}, "xgr.text"),
        (COMPLETIONS, {"prompt": SID, "max_tokens": 2}, "max_tokens"),
        (CHAT, {"messages": ASK, "max_completion_tokens": 2}, "max_completion_tokens"),
        (COMPLETIONS, {"prompt": SID, "best_of": 4}, "best_of"),
        (COMPLETIONS, {"prompt": SID, "logprobs": 1}, "logprobs"),
        (COMPLETIONS, {"prompt": SID, "temperature": 0.7}, "sampling_params.temperature"),
        (COMPLETIONS, {"prompt": SID, "n": 2, "xgr": {"sampling_params": {"n": 2}}}, "n"),
        (COMPLETIONS, {"prompt": SID, "frequency": 1}, "frequency"),
        (COMPLETIONS, {"prompt": SID, "xgr": {"stream": True}}, "xgr.stream"),
        (CHAT, {"messages": ASK, "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"messages": ASK, "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_had_is_named(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    assert refused(send(server, path, **body)) == (400, param)


def test_bodies_are_bounded_and_requests_counted(server: Server) -> None:
    assert send(server, COMPLETIONS, prompt="x" * (1 << 20)).status_code == 413
    assert send(server, COMPLETIONS, prompt=SID, model="another").status_code == 404
    send(server, COMPLETIONS, prompt=SID, xgr={"rid": "mine"})
    assert server.get("/requests").json()["requests"][0]["rid"] == "mine"
    assert 'xgr_requests_total{status="404"} 1.0' in server.get("/metrics").text
