"""The client against the application: typed answers, and the server's errors as exceptions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from xgr_runtime import errors
from xgr_runtime.client import AsyncXgrClient, ChatMessage, TextPart, XgrClient

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server


class Direct(httpx.BaseTransport):
    """Blocking requests to an ASGI application."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answered = self.server.send(
            request.method,
            request.url.raw_path.decode(),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx.Response(answered.status_code, headers=answered.headers, content=answered.content)


@pytest.fixture
def client(server: Server) -> XgrClient:
    return XgrClient("http://xgr", transport=Direct(server))


def test_generate_sends_every_field(client: XgrClient, dispatch: FakeDispatch) -> None:
    with client:
        answer = client.generate(
            history=["5", 7],
            beam_width=6,
            n=2,
            score_mode="legal",
            allow=["1", "2", "5", "x"],
            deny=["2"],
            exclude_history=True,
            timeout_ms=500,
            model="tiny",
            rid="mine",
        )
    (job,) = dispatch.jobs
    assert (job.rid, job.width, job.results, job.score_mode) == ("mine", 6, 2, "legal")
    assert (answer.rid, answer.items, answer.meta_info.unknown_items.allow) == ("mine", ["1"], 1)
    assert answer.meta_info.beam_results[0].output_ids == answer.output_ids
    assert answer.meta_info.timing.decode == 0.004


def test_templates_and_messages_are_sent(client: XgrClient, dispatch: FakeDispatch) -> None:
    both: dict[str, list[str | int]] = {"seen": ["4", 2], "bought": [3]}
    client.generate(template="two", history=both, exclude_history=True)
    assert len(dispatch.jobs[-1].deny) == 3
    client.generate(template="story", history=["1"], variables={"profile": "<c_0>", "end": "<eos>"})
    assert dispatch.jobs[-1].tokens.tolist()[::5] == [1, 2]
    part: TextPart = {"type": "text", "text": "<a_1>"}
    talk: list[ChatMessage] = [
        {"role": "system", "content": "<a_0>"},
        {"role": "user", "content": [part]},
    ]
    client.generate(messages=talk, chat_template_kwargs={"more": "<c_1>"})
    assert dispatch.jobs[-1].tokens.tolist() == [1, 3, 2, 1, 4, 2, 20, 10]
    with pytest.raises(errors.BadRequest, match="default, story, two, chat") as refused:
        client.generate(history=["1"], template="no")
    assert refused.value.param == "template"


def test_workers_come_and_go(client: XgrClient, dispatch: FakeDispatch) -> None:
    address = "tcp://10.0.0.1:7000#d/ü"
    assert client.add_worker(address, "decode").address == address
    assert client.workers()[-1].address == address
    assert client.remove_worker(address).leaving
    with pytest.raises(errors.NotFound):
        client.remove_worker("nobody")


def test_a_model_that_is_not_served(client: XgrClient) -> None:
    with pytest.raises(errors.UnknownModel, match="'large'") as raised:
        client.generate(history=["5"], model="large")
    assert raised.value.param == "model"


@pytest.mark.parametrize("prompt", [{"input_ids": [1, 3]}, {"text": "<a_0>"}], ids=["input_ids", "text"])
def test_generate_with_defaults(client: XgrClient, dispatch: FakeDispatch, prompt: dict[str, object]) -> None:
    answer = client.generate(**prompt)  # type: ignore[arg-type]
    assert dispatch.jobs[0].tokens.tolist() == [1, 3]
    assert len(answer.meta_info.beam_results) == 10


def test_empty_allow_list_is_sent(client: XgrClient) -> None:
    assert client.generate(input_ids=[1], allow=[]).meta_info.beam_results == []


def test_errors_become_exceptions(client: XgrClient, dispatch: FakeDispatch) -> None:
    with pytest.raises(errors.BadRequest, match="beam_width is 99") as caught:
        client.generate(input_ids=[1], beam_width=99)
    assert caught.value.param == "sampling_params.beam_width"
    dispatch.error = errors.WorkerLost("gone", "decode")
    with pytest.raises(errors.WorkerLost, match="gone"):
        client.generate(input_ids=[1])


def test_foreign_answers_become_internal_errors() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>bad gateway</html>"))
    with pytest.raises(errors.InternalError, match="HTTP 502"):
        XgrClient("http://xgr", transport=transport).generate(input_ids=[1])


def test_key_is_sent(server: Server) -> None:
    server.set(api_key="k3y")
    assert XgrClient("http://xgr", "k3y", transport=Direct(server)).generate(input_ids=[1]).items
    with pytest.raises(errors.WrongKey):
        XgrClient("http://xgr", "other", transport=Direct(server)).workers()


def test_ready(client: XgrClient, dispatch: FakeDispatch) -> None:
    assert client.ready()
    dispatch.draining = True
    assert not client.ready()


def test_not_ready_where_nothing_answers() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert not XgrClient("http://xgr", transport=httpx.MockTransport(refuse)).ready()


def test_workers_are_typed(client: XgrClient) -> None:
    prefill, decode = client.workers()
    assert (prefill.role, decode.role) == ("prefill", "decode")
    assert decode.load is not None
    assert decode.load.pages_used == 12


def test_abort(client: XgrClient) -> None:
    with pytest.raises(errors.NotFound):
        client.abort("nobody")


def test_async_generate(server: Server) -> None:
    async def ask() -> list[str]:
        client = AsyncXgrClient("http://xgr", transport=httpx.ASGITransport(server.app))
        try:
            return (await client.generate(history=["1"], allow=["2"])).items
        finally:
            await client.close()

    assert asyncio.run(ask()) == ["2"]
