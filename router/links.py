"""The router's control links: heartbeats out, hellos and answers in, and who is alive."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from xgr_runtime.messages import PROTOCOL, Hello, Message, Role, ToRouter, WorkerHello
from xgr_runtime.transport import AsyncLink

log = logging.getLogger(__name__)


class WorkerLink:
    """One configured worker. `alive` from its first hello until it is silent, gone or another incarnation."""

    def __init__(
        self,
        address: str,
        role: Role,
        router: int,
        heartbeat: float,
        silence: float,
        on_message: Callable[["WorkerLink", Message], None],
        on_lost: Callable[["WorkerLink", int, str], None],
    ) -> None:
        self.address = address
        self.role = role
        self.hello: WorkerHello | None = None
        self.alive = False
        self.load = 0  # what this router has under way there
        self.in_flight = 0  # attempts
        self._beat = Hello(PROTOCOL, router)
        self._heartbeat = heartbeat
        self._silence = silence
        self._heard = 0.0
        self._on_message = on_message
        self._on_lost = on_lost
        self._link: AsyncLink[Any] = AsyncLink(address, ToRouter)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def incarnation(self) -> int:
        return self.hello.incarnation if self.hello else 0

    @property
    def problem(self) -> str:
        """Why the worker cannot be used, or an empty string."""
        if self.hello is None:
            return "it has not answered yet"
        if not self.alive:
            return "it is gone"
        if self.hello.protocol != PROTOCOL:
            return f"it speaks protocol {self.hello.protocol}, this router {PROTOCOL}"
        if self.hello.role != self.role:
            return f"it is a {self.hello.role} worker, configured as {self.role}"
        return ""

    def start(self) -> None:
        self._tasks = [asyncio.create_task(t) for t in (self._receive(), self._watch(), self._beats())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._link.close()

    def send(self, message: Message) -> bool:
        """False when the worker is gone."""
        return self._link.send(message)

    def lost(self, reason: str) -> None:
        """Report the present incarnation as lost, once."""
        if self.alive:
            self.alive = False
            log.warning("%s worker at %s is lost: %s", self.role, self.address, reason)
            self._on_lost(self, self.incarnation, reason)

    async def _receive(self) -> None:
        while True:
            message = await self._link.receive()
            self._heard = asyncio.get_running_loop().time()
            if isinstance(message, WorkerHello):
                self._meet(message)
            else:
                self._on_message(self, message)

    def _meet(self, hello: WorkerHello) -> None:
        if self.alive and hello.incarnation != self.incarnation:
            self.lost("it was restarted")
        newcomer = not self.alive
        self.hello, self.alive = hello, True
        if newcomer:
            log.info(
                "%s worker %s connected%s",
                self.role,
                hello.worker,
                f", unusable: {self.problem}" * bool(self.problem),
            )

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
