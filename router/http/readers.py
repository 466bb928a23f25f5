"""Threads that work out long bodies: the most urgent first, and none for nobody.

What waits here has not been admitted yet. It can be cancelled at any time until a thread takes it, and what a
thread has taken ends by itself soon: its cost is bounded before it starts (`long_body`, `prompts`).
"""

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

from router.http.memory import give_back_memory

T = TypeVar("T")

REST = 1.0  # seconds without work after which freed memory is given back


class Readers:
    """A few threads, and who waits for one."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "intake")
        self._threads = self._free = threads
        self._resting: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []  # heap, by due
        self._numbers = count()

    async def run(self, work: Callable[[], T], due: float) -> T:
        """What `work` returns or raises. Whoever is `due` first (monotonic) goes first; callers keep time.

        Cancelled while it waits it never starts; cancelled later, the thread ends it for nobody.
        """
        await self._turn(due)
        working = asyncio.wrap_future(self._pool.submit(work))
        working.add_done_callback(self._ended)
        await asyncio.wait({working})
        return working.result()

    def _ended(self, working: asyncio.Future[Any]) -> None:
        if not working.cancelled():
            working.exception()  # whoever asked may be gone, and asyncio would log that nobody heard of it
        self._next()

    async def _turn(self, due: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (due, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was this one's turn at that very moment
                self._next()
            raise

    def _next(self) -> None:
        """A thread is free: for whoever is most urgent of those who still wait."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
        if self._free == self._threads:
            self._rest()

    def _rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(REST, self._pool.submit, give_back_memory)
