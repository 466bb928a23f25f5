"""Every way to ask wrongly, and the status, code and field that the answer names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from made_catalogs import build_from_arrays

from router.http.schema import MOST_FILTERED, MOST_HISTORY
from xgr_runtime import errors
from xgr_runtime.catalog import PromptTemplate
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server


def check(response: httpx.Response, status: int, param: str | None, code: str) -> str:
    """Asserts the error body and returns its message."""
    body = response.json()
    assert response.status_code == status, body
    assert set(body) == {"error", "request_id", "retryable"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["param"], body["error"]["code"]) == (param, code)
    assert body["request_id"]
    assert body["retryable"] is errors.BY_CODE[code].retryable
    assert body["error"]["type"] == errors.BY_CODE[code].kind
    return str(body["error"]["message"])


def sampling(**fields: object) -> dict[str, object]:
    return {"input_ids": [1], "sampling_params": fields}


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "input_ids"),
    ({"input_ids": [1], "text": "<a_0>"}, "text"),
    ({"input_ids": [1], "history": ["0"]}, "history"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [27]}, "input_ids"),
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [1 << 31]}, "input_ids"),
    ({"input_ids": [10**30]}, "input_ids"),
    ({"input_ids": [True]}, "input_ids"),
    ({"input_ids": [1.0]}, "input_ids"),
    ({"input_ids": [{"a": 1}]}, "input_ids"),
    ({"input_ids": "1"}, "input_ids"),
    ({"input_ids": [1] * 31}, "input_ids"),
    ({"text": ""}, "text"),
    ({"text": "<a_0><zz>"}, "text"),
    ({"text": {"a": 1}}, "text"),
    ({"text": "<a_0>" * 31}, "text"),
    ({"history": ["0", "nope"], "unknown_history": "refuse"}, "history"),
    ({"history": ["nope"]}, "history"),
    ({"history": [-7]}, "history"),
    ({"history": [True]}, "history"),
    ({"history": [1.5]}, "history"),
    ({"history": [10**30]}, "history"),
    ({"history": "0"}, "history"),
    ({"input_ids": [1], "rid": ""}, "rid"),
    ({"input_ids": [1], "rid": "a b"}, "rid"),
    ({"input_ids": [1], "rid": "a\n"}, "rid"),
    ({"input_ids": [1], "rid": "é"}, "rid"),
    ({"input_ids": [1], "rid": "x" * 129}, "rid"),
    ({"input_ids": [1], "rid": 5}, "rid"),
    ({"input_ids": [1], "timeout_ms": 0}, "timeout_ms"),
    ({"input_ids": [1], "timeout_ms": True}, "timeout_ms"),
    ({"input_ids": [1], "timeout_ms": 3_600_001}, "timeout_ms"),
    ({"input_ids": [1], "stream": 1}, "stream"),
    ({"input_ids": [1], "colour": 1}, "colour"),
    ({"input_ids": [1], "filters": {"maybe": []}}, "filters.maybe"),
    ({"input_ids": [1], "filters": {"deny": [None]}}, "filters.deny"),
    ({"input_ids": [1], "filters": {"allow": "0"}}, "filters.allow"),
    ({"input_ids": [1], "filters": {"exclude_history": True}}, "filters.exclude_history"),
    (sampling(beams=4), "sampling_params.beams"),
    (sampling(beam_width=0), "sampling_params.beam_width"),
    (sampling(beam_width=21), "sampling_params.beam_width"),
    (sampling(beam_width=True), "sampling_params.beam_width"),
    (sampling(beam_width="5"), "sampling_params.beam_width"),
    (sampling(n=0), "sampling_params.n"),
    (sampling(n=11), "sampling_params.n"),
    (sampling(beam_width=3, n=4), "sampling_params.n"),
    (sampling(score_mode="other"), "sampling_params.score_mode"),
    (sampling(temperature=0.7), "sampling_params.temperature"),
    (sampling(temperature=True), "sampling_params.temperature"),
    (sampling(max_new_tokens=4), "sampling_params.max_new_tokens"),
    (sampling(max_new_tokens=10**4000), "sampling_params.max_new_tokens"),
    (sampling(min_new_tokens=-(10**4000)), "sampling_params.min_new_tokens"),
    (sampling(beam_width=10**4000), "sampling_params.beam_width"),
    (sampling(n=10**4000), "sampling_params.n"),
    (sampling(min_new_tokens=4), "sampling_params.min_new_tokens"),
    (sampling(top_p=0.9), "sampling_params.top_p"),
    (sampling(top_k=1), "sampling_params.top_k"),
    (sampling(min_p=0.1), "sampling_params.min_p"),
    (sampling(frequency_penalty=1), "sampling_params.frequency_penalty"),
    (sampling(presence_penalty=1), "sampling_params.presence_penalty"),
    (sampling(repetition_penalty=0), "sampling_params.repetition_penalty"),
    (sampling(repetition_penalty=10.1), "sampling_params.repetition_penalty"),
    (sampling(repetition_penalty="1"), "sampling_params.repetition_penalty"),
    (sampling(length_penalty=-11), "sampling_params.length_penalty"),
    (sampling(score_mode="given"), "sampling_params.score_mode"),
    (sampling(stop="x"), "sampling_params.stop"),
    (sampling(stop_token_ids=[1]), "sampling_params.stop_token_ids"),
    (sampling(stop_regex="x"), "sampling_params.stop_regex"),
    (sampling(regex="x"), "sampling_params.regex"),
    (sampling(json_schema="{}"), "sampling_params.json_schema"),
    (sampling(ebnf="x"), "sampling_params.ebnf"),
    (sampling(structural_tag="x"), "sampling_params.structural_tag"),
    (sampling(logit_bias={"1": 2.0}), "sampling_params.logit_bias"),
    (sampling(custom_params={"a": 1}), "sampling_params.custom_params"),
    ({"input_ids": [1], "return_logprob": True}, "return_logprob"),
    ({"input_ids": [1], "lora_path": "x"}, "lora_path"),
    ({"input_ids": [1], "image_data": "x"}, "image_data"),
    ({"input_ids": [1], "input_embeds": []}, "input_embeds"),
    ({"input_ids": [1], "priority": 101}, "priority"),
    ({"input_ids": [1], "priority": -101}, "priority"),
]


@pytest.mark.parametrize(("body", "param"), BAD_FIELDS, ids=[f"{b!s:.60}" for b, _ in BAD_FIELDS])
def test_bad_field_is_named(server: Server, dispatch: FakeDispatch, body: dict[str, Any], param: str) -> None:
    message = check(server.generate(**body), 400, param, "invalid_value")
    assert param.rpartition(".")[2] in message
    assert not dispatch.jobs


def refused(server: Server, param: str, **body: Any) -> str:
    """The message of a 400 that names `param`."""
    return check(server.generate(**body), 400, param, "invalid_value")


def test_messages_say_what_to_change(server: Server) -> None:
    wide = refused(server, "sampling_params.beam_width", **sampling(beam_width=4096))
    assert wide == "beam_width is 4096, the limit is 20: lower it or restart with --max-beam-width 4096"
    strict = refused(server, "history", history=["0", "nope"], unknown_history="refuse")
    assert "history[1] is 'nope'" in strict
    hot = refused(server, "sampling_params.temperature", **sampling(temperature=0.7))
    assert hot.endswith("leave it out or send 0.0 or send 1.0")


def test_workers_can_lower_the_limits(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.pair = Limits(max_prompt_tokens=4, max_beam_width=6)
    check(server.generate(input_ids=[1] * 5), 400, "input_ids", "invalid_value")
    check(server.generate(**sampling(beam_width=7)), 400, "sampling_params.beam_width", "invalid_value")
    assert server.generate(**sampling(beam_width=6)).status_code == 200


def test_without_a_pair_the_dispatcher_decides(server: Server, dispatch: FakeDispatch) -> None:
    server.set(max_prompt_tokens=None)
    dispatch.pair, dispatch.error = None, errors.NoWorkers("nobody")
    check(server.generate(history=["0"]), 503, None, "no_workers")


@pytest.mark.parametrize("field", ["text", "history"])
def test_without_a_pair_no_long_body_is_worked_out(
    server: Server, dispatch: FakeDispatch, field: str
) -> None:
    server.set(max_body_bytes=1 << 20)
    dispatch.pair = None
    long = "<a_0>" * 10_000 if field == "text" else ["0"] * 10_000
    check(server.generate(**{field: long}), 503, None, "no_workers")
    assert not dispatch.jobs


def test_template_longer_than_the_limit(server: Server) -> None:
    template = PromptTemplate(prefix=(1,) * 31)
    server.catalog = build_from_arrays(["0"], [[3, 11, 19]], template=template, vocab_size=27)
    server.set()
    assert "prefix and suffix take 31 tokens" in refused(server, "history", history=["0"])


LONG_LISTS = {
    "input_ids": ({"input_ids": [1] * 100_000}, "the limit is 30"),
    "history": ({"history": [1] * (MOST_HISTORY + 1)}, f"<= {MOST_HISTORY}"),
    "filters.deny": (
        {"input_ids": [1], "filters": {"deny": [1] * (MOST_FILTERED + 1)}},
        f"<= {MOST_FILTERED}",
    ),
    "filters.allow": (
        {"input_ids": [1], "filters": {"allow": [1] * (MOST_FILTERED + 1)}},
        f"<= {MOST_FILTERED}",
    ),
    "text": ({"text": "<a_0>" * 100_000}, "the limit is 30"),
}


@pytest.mark.parametrize("param", LONG_LISTS)
def test_the_limit_of_a_list_is_named(server: Server, param: str) -> None:
    server.set(max_body_bytes=8 << 20)
    body, limit = LONG_LISTS[param]
    assert limit in refused(server, param, **body)  # type: ignore[arg-type]


def test_lists_as_long_as_they_may_be(server: Server) -> None:
    server.set(max_body_bytes=8 << 20)
    everything = {"allow": [1] * MOST_FILTERED, "deny": ["none"] * MOST_FILTERED}
    response = server.generate(history=[1] * MOST_HISTORY, filters=everything)
    assert response.status_code == 200, response.text


UNREAD = ["input_embeds", "image_data", "video_data", "audio_data", "session_params"]


@pytest.mark.parametrize("field", [*UNREAD, "sampling_params.custom_params"])
@pytest.mark.parametrize(
    "value", [5, "x", [1], {"a": 1}, [[]] * 400, True], ids=lambda value: f"{value!s:.9}"
)
def test_what_is_never_needed_is_refused_unread(server: Server, field: str, value: object) -> None:
    body: dict[str, Any] = {"input_ids": [1]}
    group, _, name = field.rpartition(".")
    (body.setdefault(group, {}) if group else body)[name] = value
    assert f"{name} is not supported" in refused(server, field, **body)


BODIES = [b"", b"{", b"[1]", b"null", b"NaN", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"rid": "a",}']


@pytest.mark.parametrize("body", BODIES, ids=repr)
def test_body_that_is_no_json_object(server: Server, body: bytes) -> None:
    response = server.send("POST", "/generate", content=body, headers={"content-type": "application/json"})
    check(response, 400, None, "invalid_value")


HALVES = {
    "first half": rb'{"text": "\ud800"}',
    "first half, then more": rb'{"text": "a\uDBFF and more of it"}',
    "second half": rb'{"text": "\udc00"}',
    "wrong way round": rb'{"text": "\udc00\ud800"}',
    "first half twice": rb'{"text": "\ud800\ud800"}',
    "as UTF-8": b'{"text": "\xed\xa0\x80"}',
    "in a name": rb'{"\ud800": 1}',
    "in a list": rb'{"history": ["1", "\udfff"]}',
    "in a field of no use": rb'{"input_ids": [1], "extra_key": "\ud800"}',
    "in an abort": rb'{"rid": "\ud800"}',
    "at the very end": rb'"\ud800"',
}


@pytest.mark.parametrize("body", HALVES.values(), ids=HALVES)
def test_half_a_character_is_called_that(server: Server, body: bytes) -> None:
    path = "/abort_request" if b"rid" in body else "/generate"
    response = server.send("POST", path, content=body, headers={"content-type": "application/json"})
    assert "lone surrogate" in check(response, 400, None, "invalid_value")


@pytest.mark.parametrize(
    "body", [b'{"text": "', rb'{"text": "\ud83d\ude', b'{"text": "\xff"}', rb'{"text": "\\ud8']
)
def test_other_faults_are_not_called_that(server: Server, body: bytes) -> None:
    response = server.send("POST", "/generate", content=body, headers={"content-type": "application/json"})
    assert "surrogate" not in check(response, 400, None, "invalid_value")


@pytest.mark.parametrize("value", [b"1e999", b'"\xff"', b'"\xed\xa0\x80"', b"[1e999]", b"-1e400"])
@pytest.mark.parametrize("field", UNREAD)
def test_what_nobody_can_read_is_refused_unread(server: Server, field: str, value: bytes) -> None:
    body = b'{"input_ids": [1], "%s": %s}' % (field.encode(), value)
    response = server.send("POST", "/generate", content=body, headers={"content-type": "application/json"})
    assert f"{field} is not supported" in check(response, 400, field, "invalid_value")


def test_deep_nesting_is_refused(server: Server) -> None:
    server.set(max_body_bytes=1 << 20)
    deep = b'{"input_ids": [1], "input_embeds": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    response = server.send("POST", "/generate", content=deep, headers={"content-type": "application/json"})
    check(response, 400, None, "invalid_value")


MEDIA = [
    ("application/json", 200),
    ("application/json; charset=UTF-8", 200),
    ("application/vnd.api+json", 200),
    (None, 200),
    ("application/x-www-form-urlencoded", 415),
    ("text/plain", 415),
    ("application/json; charset=latin-1", 415),
    ("", 415),
]


@pytest.mark.parametrize(("media", "status"), MEDIA, ids=[str(media) for media, _ in MEDIA])
def test_media_type(server: Server, media: str | None, status: int) -> None:
    headers = {} if media is None else {"content-type": media}
    response = server.send("POST", "/generate", content=b'{"input_ids": [1]}', headers=headers)
    assert response.status_code == status
    if status == 415:
        check(response, 415, None, "wrong_media_type")


ENCODINGS = [
    ("identity", 200),
    ("", 200),
    ("Identity, identity", 200),
    ("gzip, br", 415),
    ("x-unknown", 415),
    ("zstd" * 500, 415),
]


@pytest.mark.parametrize("name", ["content-encoding", "transfer-encoding"])
@pytest.mark.parametrize(("coding", "status"), ENCODINGS, ids=[f"{coding:.20}" for coding, _ in ENCODINGS])
def test_a_body_is_sent_as_it_is(server: Server, name: str, coding: str, status: int) -> None:
    headers = [("content-type", "application/json"), (name, "identity"), (name, coding)]
    response = server.send("POST", "/generate", content=b'{"input_ids": [1]}', headers=headers)
    assert response.status_code == status
    if status == 415:
        said = check(response, 415, None, "wrong_media_type")
        assert ("encoded as" if name == "content-encoding" else "transferred as") in said


def test_chunked_is_no_encoding_of_a_body(server: Server) -> None:
    """Only of its transfer: whoever reads the header otherwise would have to unpack."""
    headers = {"content-type": "application/json", "content-encoding": "chunked"}
    response = server.send("POST", "/generate", content=b'{"input_ids": [1]}', headers=headers)
    assert "encoded as" in check(response, 415, None, "wrong_media_type")


def test_announced_body_too_large(server: Server) -> None:
    check(server.generate(text="x" * 5000), 413, None, "body_too_large")


def test_unannounced_body_too_large(server: Server) -> None:
    sent: list[dict[str, Any]] = []
    parts = iter([b"x" * 3000, b"x" * 3000])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(parts), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(server.app(server.scope(), receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/generate", "POST"), ("PUT", "/workers", "GET"), ("PUT", "/workers", "POST")],
    ids=str,
)
def test_wrong_method(server: Server, method: str, path: str, allow: str) -> None:
    response = server.send(method, path)
    check(response, 405, None, "method_not_allowed")
    assert allow in response.headers["allow"].split(", ")


@pytest.mark.parametrize("path", ["/nothing", "/generate/", "/v1/embeddings"])
def test_no_such_route(server: Server, path: str) -> None:
    check(server.get(path), 404, None, "not_found")


OUTCOMES = [
    errors.DuplicateRequest("live already", "rid"),
    errors.Overloaded("full"),
    errors.NoWorkers("nobody"),
    errors.Draining("stopping"),
    errors.DeadlineExceeded("late", "timeout_ms"),
    errors.WorkerLost("gone", "decode"),
    errors.InvalidLogits("NaN"),
    errors.Cancelled("aborted"),
]


@pytest.mark.parametrize("error", OUTCOMES, ids=lambda error: error.code)
def test_dispatcher_errors_keep_their_status(
    server: Server, dispatch: FakeDispatch, error: errors.RequestError
) -> None:
    dispatch.error = error
    response = server.generate(input_ids=[1], rid="r")
    assert check(response, error.status, error.param, error.code) == error.message
    assert response.json()["request_id"] == "r"
    assert ("retry-after" in response.headers) == (error.status == 503)


@pytest.mark.parametrize("bug", [RuntimeError("secret"), errors.InternalError("secret")], ids=repr)
def test_bug_is_logged_and_not_told(
    server: Server, dispatch: FakeDispatch, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch.error = bug
    response = server.generate(input_ids=[1])
    check(response, 500, None, "internal_error")
    assert "secret" not in response.text
    assert "secret" in caplog.text
    assert "Traceback" in caplog.text
