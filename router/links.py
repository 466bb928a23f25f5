"""The router's control links to our own workers: heartbeats out, hellos and answers in, and who is alive."""

import asyncio
from typing import Any

from router.worker import OnLost, OnMessage, Worker
from xgr_runtime.messages import PROTOCOL, Hello, Message, Role, ToRouter, WorkerHello
from xgr_runtime.transport import AsyncLink


class WorkerLink(Worker):
    """A worker of ours, over ZeroMQ."""

    def __init__(
        self,
        address: str,
        role: Role,
        router: int,
        heartbeat: float,
        silence: float,
        on_message: OnMessage,
        on_lost: OnLost,
    ) -> None:
        super().__init__(address, role, on_message, on_lost)
        self._beat = Hello(PROTOCOL, router)
        self._heartbeat = heartbeat
        self._silence = silence
        self._heard = 0.0
        self._link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """See `Worker.start`."""
        self._tasks = [asyncio.create_task(t) for t in (self._receive(), self._watch(), self._beats())]

    async def stop(self) -> None:
        """See `Worker.stop`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._link.close()

    def send(self, message: Message) -> bool:
        """See `Worker.send`."""
        return self._link.send(message)

    async def _receive(self) -> None:
        while True:
            message = await self._link.receive()
            self._heard = asyncio.get_running_loop().time()
            if isinstance(message, WorkerHello):
                self.meet(message)
            else:
                self._on_message(self, message)

    async def _watch(self) -> None:
        """A killed process closes its socket at once: no need to wait for silence."""
        while True:
            await self._link.disconnected()
            self.lost("its connection broke")

    async def _beats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._link.send(self._beat)
            slept = loop.time()
            await asyncio.sleep(self._heartbeat)
            now = loop.time()
            if now - slept > self._heartbeat + self._silence / 2:
                self._heard = now  # it was us who paused
            elif self.alive and now - self._heard > self._silence:
                self.lost(f"no heartbeat for {self._silence:g} s")
