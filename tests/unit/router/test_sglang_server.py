"""The link to a stock SGLang server, against an HTTP server that the test plays, over real sockets."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from router.job import Flush
from router.workers.sglang_worker import SglangServer
from router.workers.worker import Worker, flushed
from xgr_runtime.errors import BadRequest, WorkerLost
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Failed,
    Limits,
    Load,
    Message,
    ModelIdentity,
    PrefillRequest,
    WorkerHello,
)
from xgr_runtime.wire.sglang_ticket import SglangTicket

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
LOAD = Load(0, 0, 0, 8, 0, 0, 0, {})
ID = AttemptId(11, 22, 1, 33, 44)
TOKENS = np.array([5, 6, 7], np.int32)
DEEP = "[" * 100_000  # the JSON parser raises RecursionError
DONE = {"meta_info": {"finish_reason": {"type": "length", "length": 0}}}


class PlayedServer:
    """What SGLang with our plugin answers; a test changes the attributes."""

    def __init__(self) -> None:
        self.hello = WorkerHello(PROTOCOL, "prefill", "sglang-1", 33, MODEL, "", [], Limits(99), LOAD)
        self.info: Any = None  # in place of the usual /server_info
        self.answer: tuple[int, Any] = (200, DONE)
        self.abort_status = self.flush_status = 200
        self.answering = asyncio.Event()  # heartbeats
        self.answering.set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked: list[tuple[str, Any, str | None]] = []
        routes = [
            Route("/server_info", self._info),
            Route("/generate", self._generate, methods=["POST"]),
            Route("/abort_request", self._abort, methods=["POST"]),
            Route("/flush_cache", self._flush, methods=["POST"]),
        ]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def _info(self, request: Request) -> Response:
        await self.answering.wait()
        state = {"xgr": msgspec.to_builtins(self.hello)}
        if isinstance(self.info, Response):
            return self.info
        return JSONResponse(self.info if self.info is not None else {"internal_states": [state]})

    async def _generate(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/json", "SGLang reads nothing else"
        self.asked.append(("generate", await request.json(), request.headers.get("authorization")))
        await self.hold.wait()
        status, body = self.answer
        return body if isinstance(body, Response) else JSONResponse(body, status)

    async def _abort(self, request: Request) -> Response:
        self.asked.append(("abort", await request.json(), None))
        return Response(status_code=self.abort_status)

    async def _flush(self, request: Request) -> Response:
        self.asked.append(("flush", None, request.headers.get("authorization")))
        await self.hold.wait()
        return Response("Flush cache failed.\n" if self.flush_status != 200 else "", self.flush_status)

    async def close(self) -> None:
        """As abrupt as a kill: connections break."""
        self._server.should_exit = self._server.force_exit = True
        for listener in self._server.servers:
            listener.close()
        self.hold.set()
        self.answering.set()
        self.break_connections()
        await self._serving

    def break_connections(self) -> None:
        """Those that are open now."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]


class Told:
    """What the dispatcher would hear."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.losses: list[tuple[int, str]] = []

    def message(self, _: Worker, message: Message) -> None:
        self.messages.append(message)

    def lost(self, _: Worker, incarnation: int, reason: str) -> None:
        self.losses.append((incarnation, reason))


@contextlib.asynccontextmanager
async def served(
    key: str = "", heartbeat: float = 0.02
) -> AsyncIterator[tuple[PlayedServer, SglangServer, Told]]:
    server, told = PlayedServer(), Told()
    link = SglangServer(server.url, key, heartbeat, 1.0, told.message, told.lost)
    link.start()
    try:
        yield server, link, told
    finally:
        await link.stop()
        await server.close()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def prompt(timeout: float = 5.0) -> PrefillRequest:
    return PrefillRequest(ID, "ipc:///data", TOKENS.tobytes(), timeout)


def test_introduces_itself_and_takes_prompts() -> None:
    async def body() -> None:
        async with served(key="secret") as (server, link, told):
            assert link.problem == "it has not answered yet"
            assert not link.send(prompt()), "nobody is there yet"
            await until(lambda: link.alive)
            assert link.problem == "" and link.incarnation == 33 and link.hello == server.hello
            assert link.send(prompt())
            await until(lambda: server.asked)
            (route, asked, authorization) = server.asked[0]
            assert route == "generate" and authorization == "Bearer secret"
            assert asked["input_ids"] == TOKENS.tolist()
            assert asked["sampling_params"]["max_new_tokens"] == 1
            assert SglangTicket.from_text(asked["bootstrap_host"]) == SglangTicket(ID, "ipc:///data", 3, 5.0)
            assert not told.messages, "the decode worker reports a success"

    run(body)


@pytest.mark.parametrize(
    "status, body, error",
    [
        (500, {"error": {"message": "Prefill transfer failed"}}, WorkerLost),
        (500, {"object": "error", "message": "Prefill transfer failed"}, WorkerLost),
        (503, "busy", WorkerLost),
        (400, {"error": {"message": "too long"}}, BadRequest),
        (200, {"meta_info": {"finish_reason": {"type": "abort", "message": "x"}}}, WorkerLost),
        (200, "no answer of SGLang's", WorkerLost),
        (200, Response("not gzip", headers={"Content-Encoding": "gzip"}), WorkerLost),
        (200, Response(DEEP), WorkerLost),
    ],
    ids=["failed", "failed, other form", "overloaded", "refused", "aborted", "strange", "no gzip", "deep"],
)
def test_a_failure_is_reported_with_its_reason(status: int, body: Any, error: type[Any]) -> None:
    async def play() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.answer = (status, body)
            link.send(prompt())
            await until(lambda: told.messages)
            (failed,) = told.messages
            assert isinstance(failed, Failed)
            assert (failed.id, failed.stage, failed.code) == (ID, "prefill", error.code)
            assert "SGLang" in failed.message
            if status == 500:
                assert "Prefill transfer failed" in failed.message
                assert "{" not in failed.message
            assert link.alive

    run(play)


def test_a_cancel_aborts_and_stops_waiting() -> None:
    async def body() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.hold.clear()
            link.send(prompt())
            await until(lambda: server.asked)
            link.send(Cancel(ID, "no longer wanted"))
            await until(lambda: len(server.asked) == 2)
            assert server.asked[1][:2] == ("abort", {"rid": server.asked[0][1]["rid"]})
            await until(lambda: not link._prompts)
            assert not told.messages

    run(body)


def test_a_server_that_does_not_abort_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.hold.clear()
            server.abort_status = 401
            link.send(prompt())
            await until(lambda: server.asked)
            link.send(Cancel(ID, "no longer wanted"))
            await until(lambda: not link._prompts)
            assert "could not abort request 22" in caplog.text and "401" in caplog.text
            assert link.alive and not told.messages

    run(body)


def test_a_server_that_dies_loses_its_prompts() -> None:
    async def body() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.hold.clear()
            link.send(prompt())
            await until(lambda: server.asked)
            await server.close()
            await until(lambda: told.messages and told.losses)
            (failed,) = told.messages
            assert isinstance(failed, Failed) and failed.code == WorkerLost.code
            assert told.losses == [(33, "its connection broke")]
            assert link.problem == "it is gone"

    run(body)


def test_a_broken_connection_costs_only_its_own_prompts() -> None:
    """The server is asked at once, not at the next heartbeat, whether it lives; it does."""

    async def body() -> None:
        async with served(heartbeat=60.0) as (server, link, told):
            await until(lambda: link.alive)
            server.hold.clear()
            link.send(prompt())
            await until(lambda: server.asked)
            server.hello = msgspec.structs.replace(server.hello, worker="asked again")
            server.break_connections()
            await until(lambda: told.messages)
            (failed,) = told.messages
            assert isinstance(failed, Failed) and failed.code == WorkerLost.code
            await until(lambda: link.hello and link.hello.worker == "asked again")
            assert link.alive and not told.losses

    run(body)


def test_no_connection_is_used_twice() -> None:
    """A server that keeps connections open but closes them just as they are used again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(info), info))
        await reader.read(1)
        writer.close()

    hello = WorkerHello(PROTOCOL, "prefill", "sglang-1", 33, MODEL, "", [], Limits(99), LOAD)
    info = msgspec.json.encode({"internal_states": [{"xgr": hello}]})
    asked: list[int] = []

    async def body() -> None:
        told = Told()
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            link = SglangServer(f"http://127.0.0.1:{port}", "", 0.02, 1.0, told.message, told.lost)
            link.start()
            await until(lambda: len(asked) > 3)
            assert link.alive and not told.losses
            await link.stop()

    run(body)


def test_a_router_that_was_stopped_blames_nobody_else() -> None:
    """Its own clock ran on meanwhile; it asks again before it judges."""

    async def body() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.answering.clear()
            await asyncio.sleep(0.1)  # the next heartbeat waits for its answer
            time.sleep(1.2)  # longer than the silence of 1 s
            server.answering.set()
            await asyncio.sleep(0.1)
            assert link.alive and not told.losses

    run(body)


def test_an_answer_without_end_is_none() -> None:
    """Heartbeats have a deadline as a whole: a server that sends a byte now and then is silent."""

    class Drips:
        async def __aiter__(self) -> AsyncIterator[bytes]:  # anew for whoever asks again
            while True:
                yield b" "
                await asyncio.sleep(0.05)

    async def body() -> None:
        async with served(heartbeat=0.2) as (server, link, told):
            await until(lambda: link.alive)
            server.info = StreamingResponse(Drips())
            await until(lambda: told.losses)
            assert told.losses == [(33, "no answer for 1 s")]

    run(body)


def test_a_restarted_server_is_another_one() -> None:
    async def body() -> None:
        async with served() as (server, link, told):
            await until(lambda: link.alive)
            server.hello = msgspec.structs.replace(server.hello, incarnation=34)
            await until(lambda: told.losses)
            assert told.losses == [(33, "it was restarted")]
            assert link.alive and link.incarnation == 34

    run(body)


@pytest.mark.parametrize(
    "info",
    [{}, {"internal_states": [{}]}, {"internal_states": [{"xgr": {"a": 1}}]}, [], Response(DEEP)],
    ids=["empty", "no state", "another state", "list", "deep"],
)
def test_a_server_without_our_plugin_is_unusable(info: Any, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "is unusable" in r.getMessage()]

    async def body() -> None:
        async with served() as (server, link, _told):
            server.info = info
            await until(said)
            await asyncio.sleep(0.1)
            assert not link.alive
            (line,) = said()
            assert "xgr_zmq" in line, "said once, and what is missing"
            assert "xgr_zmq" in link.problem, "and to whoever asks why there is no pair"
            server.info = None
            await until(lambda: link.alive)

    run(body)


@pytest.mark.parametrize(
    "status, named", [(401, "XGR_SGLANG_API_KEY"), (403, "XGR_SGLANG_API_KEY"), (502, "502")]
)
def test_a_server_that_refuses_to_introduce_itself(status: int, named: str) -> None:
    async def body() -> None:
        async with served() as (server, link, _told):
            server.info = Response(status_code=status)
            await until(lambda: named in link.problem)
            assert not link.alive

    run(body)


def test_tensor_parallelism_is_refused_by_name() -> None:
    async def body() -> None:
        async with served() as (server, link, _told):
            wide = msgspec.structs.replace(MODEL, tp_size=2)
            server.hello = msgspec.structs.replace(server.hello, model=wide)
            await until(lambda: link.hello)
            assert link.problem == "its tensor parallelism is 2, this release needs 1"

    run(body)


def test_its_cache_is_flushed_over_its_own_route() -> None:
    async def test() -> None:
        async with served(key="k3y") as (server, link, _):
            server.hello = msgspec.structs.replace(
                server.hello, load=msgspec.structs.replace(LOAD, pages_cached=6)
            )
            await until(lambda: link.alive)
            assert await flushed(link) == Flush(server.url, 6)
            assert server.asked == [("flush", None, "Bearer k3y")]
            server.flush_status = 400
            busy = await flushed(link)
            assert busy.pages == 0 and "400: Flush cache failed." in busy.problem

    run(test)


def test_a_server_that_is_gone_or_does_not_answer_is_named_in_a_flush() -> None:
    async def test() -> None:
        async with served() as (server, link, _):
            await until(lambda: link.alive)
            server.hold.clear()
            assert "broke off: ReadTimeout" in (await flushed(link)).problem
            await server.close()
            await until(lambda: not link.alive)
            assert (await flushed(link)).problem

    run(test)


def test_a_server_that_lets_heartbeats_wait_is_quiet_and_not_lost() -> None:
    async def body() -> None:
        async with served(heartbeat=0.05) as (server, link, told):
            await until(lambda: link.alive)
            assert not link.quiet
            server.answering.clear()
            await until(lambda: link.quiet)
            assert link.alive and not told.losses
            server.answering.set()
            await until(lambda: not link.quiet)

    run(body)


def test_a_loss_that_cannot_be_told_does_not_end_the_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with served() as (server, link, told):

            def lost(*_: Any) -> None:
                told.losses.append((0, ""))
                raise RuntimeError("a bug")

            await until(lambda: link.alive)
            monkeypatch.setattr(link, "_on_lost", lost)
            server.answering.clear()
            await until(lambda: link.quiet)  # a heartbeat waits
            server.break_connections()
            await until(lambda: told.losses)
            server.answering.set()
            await until(lambda: link.alive)

    run(body)
