"""When clients ask again, by both of them: what a server refuses for now, and never past a deadline."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from xgr_runtime import errors
from xgr_runtime.client import AsyncXgrClient, XgrClient
from xgr_runtime.client.repeats import FIRST_PAUSE

REFUSED = httpx.ConnectError("refused")
CUT_OFF = httpx.RemoteProtocolError("cut off")
Step = httpx.Response | Exception


def said(status: int, code: str, **headers: str) -> httpx.Response:
    error = {"message": "so it is", "type": "server_error", "param": None, "code": code}
    body = {"error": error, "request_id": "1", "retryable": status in (502, 503)}
    return httpx.Response(status, json=body, headers=headers)


def overloaded(after: str) -> httpx.Response:
    return said(503, "overloaded", **{"retry-after": after})


def lists() -> httpx.Response:
    return httpx.Response(200, json={"filters": []})


class Played:
    """A server that does the next of `steps` each time; what it was sent, and when by a clock of its own."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        self.sent: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def monotonic(self) -> float:
        """Of its clock, which only pauses move."""
        return sum(self.pauses)

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.sent]


Ask = Callable[[Played, int, str, dict[str, Any]], Any]


def blocking(played: Played, retries: int, method: str, arguments: dict[str, Any]) -> Any:
    with XgrClient("http://xgr", transport=httpx.MockTransport(played), retries=retries) as client:
        return getattr(client, method)(**arguments)


def asynchronous(played: Played, retries: int, method: str, arguments: dict[str, Any]) -> Any:
    async def ask() -> Any:
        transport = httpx.MockTransport(played)
        async with AsyncXgrClient("http://xgr", transport=transport, retries=retries) as client:
            return await getattr(client, method)(**arguments)

    return asyncio.run(ask())


@pytest.fixture(params=[blocking, asynchronous], ids=lambda ask: ask.__name__)
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """Pauses are noted, and over at once."""
    server = Played([])
    monkeypatch.setattr(time, "sleep", server.pauses.append)
    monkeypatch.setattr("xgr_runtime.client.repeats.time", server)
    monkeypatch.setattr("xgr_runtime.client.clients.asyncio.sleep", server.pause)
    yield server
    assert not server.steps, "it was asked as often as it should be"


def test_no_sooner_than_the_server_says(ask: Ask, played: Played) -> None:
    played.steps += [overloaded("3"), overloaded("1"), lists()]
    assert ask(played, 2, "filters", {}) == []
    assert [3.0 <= pause <= 4.5 for pause in played.pauses[:1]] == [True]
    assert 1.0 <= played.pauses[1] <= 1.5


def test_pauses_grow_where_it_says_nothing(ask: Ask, played: Played) -> None:
    played.steps += [REFUSED, CUT_OFF, said(502, "worker_lost"), lists()]
    ask(played, 3, "filters", {})
    for pause, least in zip(played.pauses, (1, 2, 4), strict=True):
        assert least * FIRST_PAUSE <= pause <= 1.5 * least * FIRST_PAUSE


def test_as_often_as_was_said(ask: Ask, played: Played) -> None:
    played.steps += [overloaded("1")] * 3
    with pytest.raises(errors.Overloaded) as raised:
        ask(played, 2, "filters", {})
    assert raised.value.retry_after == 1.0
    played.steps += [overloaded("1")]
    with pytest.raises(errors.Overloaded):
        ask(played, 0, "filters", {})


@pytest.mark.parametrize("code", ["invalid_value", "invalid_logits", ""])
def test_what_will_not_pass_is_raised_at_once(ask: Ask, played: Played, code: str) -> None:
    played.steps += [said(500, code) if code else httpx.ReadTimeout("")]
    with pytest.raises((errors.RequestError, httpx.ReadTimeout)):
        ask(played, 5, "filters", {})
    assert not played.pauses


def test_no_retry_past_the_deadline_and_each_is_told_what_is_left(ask: Ask, played: Played) -> None:
    played.steps += [said(502, "worker_lost"), overloaded("60")]
    with pytest.raises(errors.Overloaded):
        ask(played, 5, "generate", {"history": ["1"], "timeout_ms": 50_000})
    first, second = (body["timeout_ms"] for body in played.bodies())
    assert first == 50_000 and second == pytest.approx(50_000 - 1000 * played.pauses[0], abs=1)


@pytest.mark.parametrize(
    ("method", "arguments", "again"),
    [
        ("edit_items", {"hide": ["1"]}, False),
        ("edit_items", {"hide": ["1"], "key": "mine"}, True),
        ("roll_back", {}, False),
        ("remove_filter", {"name": "sale"}, False),
        ("set_filter", {"name": "sale", "where": "on_sale"}, True),
        ("add_worker", {"address": "tcp://[::1]:1", "role": "decode"}, True),
    ],
)
def test_what_was_cut_off_is_repeated_where_twice_is_once(
    ask: Ask, played: Played, method: str, arguments: dict[str, Any], again: bool
) -> None:
    played.steps += [CUT_OFF] * (3 if again else 1)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(played, 2, method, arguments)


def test_a_file_is_sent_again_from_its_start(ask: Ask, played: Played, tmp_path: Path) -> None:
    file = tmp_path / "edits.ndjson"
    file.write_bytes(b'{"hide":"1"}\n')
    played.steps += [overloaded("1"), said(400, "invalid_value")]
    with pytest.raises(errors.BadRequest):
        ask(played, 2, "edit_lines", {"edits": file})
    assert [request.content for request in played.sent] == [file.read_bytes()] * 2
    assert played.sent[0].headers["content-length"] == str(file.stat().st_size)
