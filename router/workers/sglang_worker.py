"""A stock SGLang server as prefill worker, driven over its own HTTP routes.

`/server_info` introduces it and shows that its scheduler turns; `/generate` runs a prompt, whose KV then goes
straight to the decode worker that the ticket names; `/abort_request` cancels. The answer to `/generate` comes
when the hand-over is over, and says why if it failed.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import msgspec

from router.workers.worker import QUIET, OnLost, OnMessage, Worker
from xgr_runtime.errors import BadRequest, RequestError, WorkerLost
from xgr_runtime.wire.arrays import int32s
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Failed,
    Message,
    OtherProtocol,
    PrefillRequest,
    WorkerHello,
)
from xgr_runtime.wire.sglang_ticket import SglangTicket, request_id

log = logging.getLogger(__name__)

_PLUGIN_MISSING = (
    "its /server_info does not introduce it: start SGLang with --disaggregation-mode prefill "
    "--disaggregation-transfer-backend xgr_zmq"
)
_KEY_MISSING = "it wants another key: set XGR_SGLANG_API_KEY to its --api-key"


class SglangServer(Worker):
    """One server; its attempts are tasks that wait for an HTTP answer each."""

    def __init__(
        self,
        url: str,
        api_key: str,
        heartbeat: float,
        silence: float,
        on_message: OnMessage,
        on_lost: OnLost,
    ) -> None:
        super().__init__(url, "prefill", on_message, on_lost)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Every call has a connection of its own: the server may close one that was kept just as it is used,
        # which would look as if the server had died. On this machine a new one costs about a millisecond.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        # Proxies that the environment names are for the world outside, not for this machine's servers.
        self._http = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, trust_env=False)
        self._heartbeat = heartbeat
        self._silence = silence
        self._asked = math.inf  # when the heartbeat that is not answered yet was sent
        self._doubt = asyncio.Event()  # a prompt's connection broke: ask at once
        self._prompts: dict[AttemptId, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()

    @property
    def traceable(self) -> bool:
        """See `Worker.traceable`."""
        return False

    @property
    def quiet(self) -> bool:
        """See `Worker.quiet`. There is one heartbeat at a time, which waits for its answer."""
        return time.monotonic() - self._asked > QUIET * self._heartbeat

    def start(self) -> None:
        """See `Worker.start`."""
        self._keep(self._kept(self._beats))

    async def stop(self) -> None:
        """See `Worker.stop`."""
        tasks = [*self._prompts.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    def send(self, message: Message) -> bool:
        """See `Worker.send`."""
        match message:
            case PrefillRequest(id=id) if self.alive:
                task = self._prompts[id] = asyncio.create_task(self._prefill(message))
                task.add_done_callback(lambda _: self._prompts.pop(id, None))
            case Cancel(id=id) if id in self._prompts:
                self._keep(self._abort(id))
        return self.alive

    async def flush_cache(self) -> int:
        """See `Worker.flush_cache`. SGLang does it while it is idle; the pages are those it told of last."""
        pages = self.hello.load.pages_cached if self.hello else 0
        try:
            answer = await self._http.post("/flush_cache", timeout=self._silence)
        except httpx.HTTPError as error:
            raise WorkerLost(f"the SGLang server broke off: {type(error).__name__}") from None
        if answer.is_error:
            raise WorkerLost(f"the SGLang server answered {answer.status_code}: {answer.text[:200].strip()}")
        return pages

    async def refresh(self) -> None:
        """See `Worker.refresh`."""
        await self._ask()

    # --- one prompt ---

    async def _prefill(self, request: PrefillRequest) -> None:
        """Run a prompt. A hand-over that succeeds is reported by the decode worker, not here."""
        try:
            answer = await self._http.post("/generate", json=_body(request), timeout=request.timeout)
            problem = _problem(answer)
        except httpx.TimeoutException:
            return  # the router's own deadline has passed
        except httpx.TransportError as error:
            problem = WorkerLost(f"the SGLang server broke off: {type(error).__name__}")
            self._doubt.set()
        except Exception as error:
            log.exception("%s: the answer to request %d cannot be read", self.address, request.id.request)
            problem = WorkerLost(f"the SGLang server's answer cannot be read: {type(error).__name__}")
        if problem is not None:
            self._fail(request.id, problem)

    def _fail(self, id: AttemptId, error: RequestError) -> None:
        self._on_message(self, Failed(id, "prefill", error.code, error.message))

    async def _abort(self, id: AttemptId) -> None:
        try:
            body = {"rid": request_id(id)}
            answer = await self._http.post("/abort_request", json=body, timeout=self._silence)
            answer.raise_for_status()  # with --admin-api-key it wants another key than /generate
        except httpx.HTTPError as error:
            log.warning("%s: could not abort request %d: %r", self.address, id.request, error)
        if id in self._prompts:
            self._prompts[id].cancel()

    # --- life ---

    async def _beats(self) -> None:
        while True:
            self._doubt.clear()
            await self._ask()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubt.wait(), self._heartbeat)

    async def _ask(self) -> None:
        """One heartbeat, answered within `silence` or not at all."""
        asked = self._asked = time.monotonic()
        try:
            async with asyncio.timeout(self._silence):
                answer = await self._http.get("/server_info", timeout=None)
            self._introduced(answer)
        except TimeoutError:
            if time.monotonic() - asked < self._silence + self._heartbeat:  # else it was us who paused
                self.lost(f"no answer for {self._silence:g} s")
        except httpx.TransportError:
            self.lost("its connection broke")
        except Exception as error:  # it may answer anything
            log.debug("%s: /server_info: %r", self.address, error)
            self._unusable(_PLUGIN_MISSING)
        finally:
            self._asked = math.inf

    def _introduced(self, answer: httpx.Response) -> None:
        if answer.is_error:
            wrong_key = answer.status_code in (401, 403)
            self._unusable(_KEY_MISSING if wrong_key else f"it answers HTTP {answer.status_code}")
            return
        state = answer.json()["internal_states"][0]
        protocol = state["xgr"]["protocol"]
        if protocol != PROTOCOL:
            self._unusable(OtherProtocol(protocol).problem_with("router"))
        else:
            self.meet(msgspec.convert(state["xgr"], WorkerHello))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)


def _body(request: PrefillRequest) -> dict[str, Any]:
    tokens = int32s(request.tokens)
    ticket = SglangTicket(request.id, request.data_address, len(tokens), request.timeout)
    return {
        "rid": request_id(request.id),
        "input_ids": tokens.tolist(),
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "bootstrap_host": ticket.to_text(),
        "bootstrap_room": request.id.request << 8 | request.id.attempt & 0xFF,
    }


def _problem(answer: httpx.Response) -> RequestError | None:
    """Why the prompt did not reach its decode worker, as SGLang tells it; None when it did."""
    if answer.status_code == 400:
        return BadRequest(f"the SGLang server refused the prompt: {_message(answer)}")
    if answer.is_error:
        return WorkerLost(f"the SGLang server answered {answer.status_code}: {_message(answer)}")
    try:
        reason = answer.json()["meta_info"]["finish_reason"]
        aborted = reason["type"] == "abort"
    except (ValueError, LookupError, TypeError):
        return WorkerLost(f"the SGLang server answered what SGLang does not: {answer.text[:500]}")
    return WorkerLost(f"the SGLang server aborted the prompt: {reason.get('message')}") if aborted else None


def _message(answer: httpx.Response) -> str:
    """SGLang's own errors come as {"message"}, those of its OpenAI routes as {"error": {"message"}}."""
    try:
        body = answer.json()
        return str(body.get("error", body)["message"])[:500]
    except (ValueError, LookupError, TypeError, AttributeError):
        return answer.text[:500]
