"""Every way to be refused, against real processes: status, error body, and nothing held afterwards."""

import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from freed import assert_all_freed
from items import Items
from sameness import assert_identical
from serve import Serve
from until import until

from xgr_runtime import errors
from xgr_runtime.client import XgrClient, read
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import ServerInfo

LONG = 6000  # tokens: hundreds of milliseconds of work on any machine that runs tests
Body = dict[str, Any]


def check(response: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    """Asserts the error body and returns its message."""
    body = response.json()
    assert response.status_code == status, body
    assert set(body) == {"error", "request_id", "retryable"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"] and body["request_id"]
    assert body["retryable"] is errors.BY_CODE[code].retryable
    return str(error["message"])


def post(client: XgrClient, body: object) -> httpx.Response:
    return client.http.post("/generate", json=body)


def post_once(client: XgrClient, content: bytes | Iterator[bytes]) -> httpx.Response:
    """On a connection of its own: it ends where much is left of a body that was refused."""
    with XgrClient(str(client.http.base_url)) as own:
        return own.http.post("/generate", content=content)


def live(client: XgrClient) -> int:
    return read(client.http.get("/server_info"), ServerInfo).live_requests


def wait_live(client: XgrClient, count: int) -> None:
    """Until the router holds exactly `count` requests."""
    until = time.monotonic() + 30
    while live(client) != count:
        assert time.monotonic() < until, f"never {count} live requests"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def long_prompts(client: XgrClient, prompts: list[list[int]]) -> Iterator[list[int]]:
    """Slow enough to be caught in the middle; no two begin alike, so no cache makes them fast."""
    tokens = [token for prompt in prompts for token in prompt]
    whole = (tokens * (LONG // len(tokens) + 1))[:LONG]
    return ([first, *whole[1:]] for first in itertools.count(2))


@pytest.fixture(autouse=True)
def the_next_answer_is_undisturbed(client: XgrClient, prompts: list[list[int]]) -> Iterator[None]:
    """Whatever a test does wrong, the next request gets the same answer as the one before."""
    before = client.generate(input_ids=prompts[0], beam_width=16)
    yield
    assert_identical(client.generate(input_ids=prompts[0], beam_width=16), before)


def sampling(**fields: object) -> Body:
    return {"input_ids": [1], "sampling_params": fields}


BAD_FIELDS: list[tuple[Body, str]] = [
    ({}, "input_ids"),
    ({"input_ids": [1], "history": []}, "history"),
    ({"input_ids": [1], "text": "<a_0>"}, "text"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [1 << 20]}, "input_ids"),  # no such token
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [1.5]}, "input_ids"),
    ({"input_ids": "1"}, "input_ids"),
    ({"input_ids": [1] * 9000}, "input_ids"),  # prompt too long
    ({"text": ""}, "text"),
    ({"text": "<no_such_token>"}, "text"),
    ({"history": ["no such item"]}, "history"),
    ({"history": [-7]}, "history"),
    ({"input_ids": [1], "rid": "two words"}, "rid"),
    ({"input_ids": [1], "timeout_ms": 0}, "timeout_ms"),
    ({"input_ids": [1], "timeout_ms": 3_600_001}, "timeout_ms"),
    ({"input_ids": [1], "colour": "red"}, "colour"),
    ({"input_ids": [1], "filters": {"deny": "0"}}, "filters.deny"),
    ({"input_ids": [1], "filters": {"allow": [None]}}, "filters.allow"),
    ({"input_ids": [1], "filters": {"some": []}}, "filters.some"),
    ({"input_ids": [1], "filters": {"exclude_history": True}}, "filters.exclude_history"),
    (sampling(beam_width=0), "sampling_params.beam_width"),
    (sampling(beam_width=1025), "sampling_params.beam_width"),
    (sampling(beam_width="9"), "sampling_params.beam_width"),
    (sampling(n=0), "sampling_params.n"),
    (sampling(beam_width=8, n=9), "sampling_params.n"),
    (sampling(score_mode="best"), "sampling_params.score_mode"),
    (sampling(temperature=0.7), "sampling_params.temperature"),
    (sampling(max_new_tokens=99), "sampling_params.max_new_tokens"),
    (sampling(beams=3), "sampling_params.beams"),
]


@pytest.mark.parametrize(("body", "param"), BAD_FIELDS, ids=[f"{body!s:.50}" for body, _ in BAD_FIELDS])
def test_bad_field(client: XgrClient, body: Body, param: str) -> None:
    message = check(post(client, body), 400, "invalid_value", param)
    assert param.rpartition(".")[2] in message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"text": "\xff"}'], ids=repr)
def test_no_json_object(client: XgrClient, body: bytes) -> None:
    check(client.http.post("/generate", content=body), 400, "invalid_value")


def test_body_too_large(client: XgrClient) -> None:
    most = read(client.http.get("/server_info"), ServerInfo).max_body_bytes
    check(post_once(client, b" " * (most + 1)), 413, "body_too_large")


def test_unannounced_body_too_large(client: XgrClient) -> None:
    most = read(client.http.get("/server_info"), ServerInfo).max_body_bytes
    parts = (b" " * (1 << 20) for _ in range(most // (1 << 20) + 1))
    check(post_once(client, parts), 413, "body_too_large")


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/msgpack"])
def test_wrong_media_type(client: XgrClient, media: str) -> None:
    response = client.http.post("/generate", content=b"{}", headers={"content-type": media})
    check(response, 415, "wrong_media_type")


def test_no_such_route(client: XgrClient) -> None:
    check(client.http.get("/nothing"), 404, "not_found")


def test_wrong_method(client: XgrClient) -> None:
    response = client.http.get("/generate")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_abort_of_nobody(client: XgrClient) -> None:
    check(client.http.post("/abort_request", json={"rid": "nobody"}), 404, "not_found", "rid")


# --- requests that are under way -----------------------------------------------------------------------


@pytest.fixture
def caught(
    client: XgrClient, long_prompts: Iterator[list[int]]
) -> Iterator[Callable[..., Future[httpx.Response]]]:
    """Sends a long request from a thread and returns while the router holds it."""
    with ThreadPoolExecutor(1) as pool:

        def send(rid: str) -> Future[httpx.Response]:
            answer = pool.submit(post, client, {"input_ids": next(long_prompts), "rid": rid})
            wait_live(client, 1)
            return answer

        yield send


def test_duplicate_live_rid(
    client: XgrClient, caught: Callable[..., Future[httpx.Response]], prompts: list[list[int]]
) -> None:
    first = caught("twin")
    check(post(client, {"input_ids": prompts[0], "rid": "twin"}), 409, "duplicate_rid", "rid")
    assert first.result(60).status_code == 200, "the live one goes on"
    assert post(client, {"input_ids": prompts[0], "rid": "twin"}).status_code == 200, "it is free again"


def test_aborted_request(client: XgrClient, caught: Callable[..., Future[httpx.Response]]) -> None:
    first = caught("unwanted")
    client.abort("unwanted")
    check(first.result(60), 499, "cancelled")
    assert_all_freed(client)


@pytest.mark.parametrize("timeout_ms", [1, 20], ids="{}ms".format)
def test_deadline(client: XgrClient, long_prompts: Iterator[list[int]], timeout_ms: int) -> None:
    settings = {"timeout_ms": timeout_ms, "sampling_params": {"beam_width": 512}}
    for _ in range(3):
        body = {"input_ids": next(long_prompts), **settings}
        message = check(post(client, body), 504, "deadline_exceeded", "timeout_ms")
        assert "deadline" in message
    assert_all_freed(client)


def test_client_that_goes_away(
    client: XgrClient, deployment: Deployment, long_prompts: Iterator[list[int]]
) -> None:
    for _ in range(3):
        body = {"input_ids": next(long_prompts), "sampling_params": {"beam_width": 1024}}
        with httpx.Client(base_url=deployment.url) as other, pytest.raises(httpx.ReadTimeout):
            other.post("/generate", json=body, timeout=httpx.Timeout(30.0, read=0.05))
    wait_live(client, 0)
    assert_all_freed(client)


# --- web pages -----------------------------------------------------------------------------------------

PAGES = [
    ("POST", "/flush_cache", {"content-type": "text/plain"}, 415, "wrong_media_type"),
    ("POST", "/flush_cache", {"origin": "https://evil.example"}, 403, "foreign_page"),
    ("POST", "/generate", {"origin": "null"}, 403, "foreign_page"),
    ("GET", "/workers", {"host": "evil.example"}, 403, "foreign_page"),
    ("GET", "/trace", {"host": "evil.example:80"}, 403, "foreign_page"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), PAGES, ids=str)
def test_a_web_page_reaches_nothing(
    deployment: Deployment, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    check(httpx.request(method, deployment.url + path, headers=headers), status, code)
    assert httpx.post(f"{deployment.url}/flush_cache").status_code == 200


# --- clients that are slow ------------------------------------------------------------------------------


def test_slow_clients_slow_nobody_else(
    client: XgrClient, deployment: Deployment, prompts: list[list[int]]
) -> None:
    """Half heads and half bodies by dozens; requests between them are answered as if there were none."""
    before = client.generate(input_ids=prompts[0], beam_width=16)
    parts = httpx.URL(deployment.url)
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with ExitStack() as held:
        for sent in (b"", head, head + b"Content-Length: 1000\r\n\r\n{") * 20:
            slow = held.enter_context(socket.create_connection((parts.host, parts.port), timeout=30))
            slow.sendall(sent)
        for _ in range(5):
            assert_identical(client.generate(input_ids=prompts[0], beam_width=16), before)
    assert_all_freed(client)


# --- keys ----------------------------------------------------------------------------------------------

CLIENT, ADMIN = "client-s3same", "admin-s3same"


@pytest.fixture(scope="module")
def locked(checkpoint: Path, items: Items, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A deployment that wants keys, and all that its processes print."""
    few = items.only(set(sorted(items.sids)[:30]))
    index = few.write_index(tmp_path_factory.mktemp("locked") / "index.json", checkpoint)
    files = ["--model-path", str(checkpoint), "--catalog", str(index)]
    flags = ["--port", "0", "--kv-bytes", str(32 << 20), "--log-level", "DEBUG"]
    keys = {"XGR_API_KEY": CLIENT, "XGR_ADMIN_API_KEY": ADMIN}
    with closing(Serve([*files, *flags], {**os.environ, **keys})) as running:
        running.url()
        yield running
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0


def ask(locked: Serve, method: str, path: str, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    body = {"input_ids": [1]} if method == "POST" else None
    return httpx.request(method, locked.url() + path, headers=headers, json=body, timeout=60)


KEYS: list[tuple[str | None, str, str]] = [  # what is sent, and the refusals of a client and an admin route
    (None, "missing_api_key", "missing_api_key"),
    ("Basic abc", "missing_api_key", "missing_api_key"),
    ("Bearer", "missing_api_key", "missing_api_key"),
    ("Bearer wrong", "wrong_api_key", "wrong_api_key"),
    (f"Bearer {CLIENT}", "", "wrong_api_key"),
    (f"Bearer {ADMIN}", "", ""),
]
ROUTES = [("POST", "/generate"), ("GET", "/server_info")]
ADMIN_ROUTES = [("GET", "/workers"), ("GET", "/trace"), ("POST", "/flush_cache")]


@pytest.mark.parametrize(("header", "code", "admin_code"), KEYS, ids=[str(header) for header, _, _ in KEYS])
def test_key(locked: Serve, header: str | None, code: str, admin_code: str) -> None:
    wanted = [(route, code) for route in ROUTES] + [(route, admin_code) for route in ADMIN_ROUTES]
    for (method, path), refusal in wanted:
        response = ask(locked, method, path, header)
        if refusal:
            check(response, errors.BY_CODE[refusal].status, refusal)
        else:
            assert response.status_code == 200, response.text
    assert ask(locked, "GET", "/readiness", None).status_code == 200, "probes need no key"


def test_keys_are_told_to_nobody(locked: Serve) -> None:
    """Not in what processes print, in their arguments, or in any answer."""
    told = []
    for method, path in [*ROUTES, *ADMIN_ROUTES, ("GET", "/model_info"), ("GET", "/metrics")]:
        for key in (CLIENT, ADMIN, f"{ADMIN}x"):
            told.append(ask(locked, method, path, f"Bearer {key}").text)
    family = [psutil.Process(locked.process.pid), *locked.family()]
    assert len(family) >= 4, "launcher, two workers, router"
    told += [argument for process in family for argument in process.cmdline()]
    until(lambda: any("GET /metrics" in line for line in locked.lines), "the last one is in the log", 20)
    log = "".join(locked.lines)
    assert "POST /generate 200" in log, "it is all there"
    assert "s3same" not in "".join([*told, log])
