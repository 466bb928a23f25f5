"""One small real request for all who ask whether the deployment works, however many they are."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from xgr_runtime.errors import RequestError, Unhealthy

FRESH = 1.0  # seconds for which an outcome is believed


class Probe:
    """Runs at most one request at a time; who asks meanwhile, or soon after, shares its outcome."""

    def __init__(
        self, run: Callable[[], Awaitable[object]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`run` sends the request and keeps its deadline."""
        self._run = run
        self._clock = clock
        self._task: asyncio.Task[str] | None = None
        self._fresh_until = 0.0

    async def check(self) -> None:
        """Whoever is cancelled meanwhile leaves the request to the others. Raises `Unhealthy`."""
        task = self._task
        if task is None or task.cancelled() or (task.done() and self._clock() >= self._fresh_until):
            task = self._task = asyncio.create_task(self._once())
        if problem := await asyncio.shield(task):
            raise Unhealthy(f"a small request failed: {problem}")

    async def _once(self) -> str:
        """What went wrong, or an empty string."""
        try:
            await self._run()
        except (RequestError, TimeoutError) as error:
            return str(error) or "it was not answered in time"
        finally:
            self._fresh_until = self._clock() + FRESH
        return ""
