"""The router's control links to our own workers: heartbeats out, hellos and answers in, and who is alive."""

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from router.workers.worker import OnLost, OnMessage, Worker
from xgr_runtime.errors import WorkerLost
from xgr_runtime.transport import AsyncLink
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.messages import (
    PROTOCOL,
    CacheFlushed,
    FlushCache,
    Hello,
    Message,
    OtherProtocol,
    Role,
    ToRouter,
    WorkerHello,
)

log = logging.getLogger(__name__)

AWAY_BEAT = 0.1  # seconds


class WorkerLink(Worker):
    """A worker of ours, over ZeroMQ."""

    def __init__(
        self,
        address: str,
        role: Role,
        router: int,
        name: str,
        heartbeat: float,
        silence: float,
        on_message: OnMessage,
        on_lost: OnLost,
        keys: Keyring | None = None,
        catalogs: Callable[[], list[str]] = list,
    ) -> None:
        """`catalogs`: versions that this router may still use."""
        super().__init__(address, role, on_message, on_lost)
        self._name = name
        self._catalogs = catalogs
        self._heartbeat = heartbeat
        self._silence = silence
        self._heard = 0.0
        self._keys = keys
        self._link = self._connected()
        self._task: asyncio.Task[None] | None = None
        self._router = router
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[int]] = {}  # numbers of what waits for an answer

    def start(self) -> None:
        """See `Worker.start`."""
        self._task = asyncio.create_task(self._kept(self._session))

    async def stop(self) -> None:
        """See `Worker.stop`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._link.close()

    def send(self, message: Message) -> bool:
        """See `Worker.send`."""
        try:
            return self._link.send(message)
        except Exception:
            log.exception("%s: a message could not be sent", self.address)
            return False

    async def flush_cache(self) -> int:
        """See `Worker.flush_cache`."""
        return await self._answer(FlushCache(self._router, next(self._numbers)))

    async def refresh(self) -> None:
        """See `Worker.refresh`."""
        await self._answer(self._hello(next(self._numbers)))

    def lost(self, reason: str) -> None:
        """See `Worker.lost`."""
        super().lost(reason)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(WorkerLost(reason))

    def _hello(self, number: int = 0) -> Hello:
        return Hello(PROTOCOL, self._router, self._name, number, self._catalogs())

    async def _answer(self, message: FlushCache | Hello) -> int:
        """What the worker answers to a message with a number. Raises `WorkerLost`."""
        answer = self._asked[message.number] = asyncio.get_running_loop().create_future()
        try:
            self.send(message)
            return await asyncio.wait_for(answer, self._silence)
        except TimeoutError:
            raise WorkerLost(f"no answer for {self._silence:g} s") from None
        finally:
            del self._asked[message.number]

    def _connected(self) -> "AsyncLink[Any]":
        return AsyncLink(self.address, ToRouter, self._keys)

    async def _session(self) -> None:
        """Listen until something breaks; then all begins again on a new connection."""
        try:
            async with asyncio.TaskGroup() as group:
                for part in (self._receive(), self._watch(), self._beats()):
                    group.create_task(part)
        except Exception:
            self._link.close()
            self._link = self._connected()
            raise

    async def _receive(self) -> None:
        while True:
            message = await self._link.receive()
            self._heard, self._unanswered = asyncio.get_running_loop().time(), 0
            if isinstance(message, OtherProtocol):
                self._unusable(message.problem_with("router"))
            elif isinstance(message, WorkerHello):
                self.meet(message)
                self._answered(message.number)
            elif isinstance(message, CacheFlushed):
                self._answered(message.number, message.pages)
            else:
                self._on_message(self, message)

    def _answered(self, number: int, pages: int = 0) -> None:
        answer = self._asked.get(number)
        if answer is not None and not answer.done():
            answer.set_result(pages)

    async def _watch(self) -> None:
        """A killed process closes its socket at once: no need to wait for silence."""
        while True:
            await self._link.disconnected()
            self.lost("its connection broke")

    def _pause(self) -> float:
        """Seconds until the next heartbeat; short for one just lost, as another may have its place."""
        if self.incompatible:
            return self._silence
        just_lost = not self.alive and time.monotonic() - self.away_since < self._silence
        return min(self._heartbeat, AWAY_BEAT) if just_lost else self._heartbeat

    async def _beats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._link.send(self._hello())
            self._unanswered += 1
            slept = loop.time()
            pause = self._pause()
            await asyncio.sleep(pause)
            now = loop.time()
            if now - slept > pause + self._silence / 2:
                self._heard = now  # it was us who paused
            elif self.alive and now - self._heard > self._silence:
                self.lost(f"no heartbeat for {self._silence:g} s")
