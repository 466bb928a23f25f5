"""All tries at one request: pair after pair, once two at a time, until one answers or none is left."""

import asyncio
import logging
import time

import msgspec

from router.dispatch.attempt import Attempt, LiveRequest, Retry
from router.dispatch.attempts import Attempts
from router.dispatch.poison import PoisonRequests
from router.dispatch.validation import found_in
from router.job import Job, Outcome
from xgr_runtime.config import RouterConfig
from xgr_runtime.errors import CrashedWorkers, NoWorkers, Preempted, RequestError
from xgr_runtime.wire.messages import Result, Timing

log = logging.getLogger(__name__)

FIRST_REST, LONGEST_REST = 0.1, 5.0  # seconds until batch work that made room is tried again
UNREACHED_REST = 0.02  # seconds in which our links hear who else is gone; in one turn they hear nothing


class Tries:
    """One live request, from its first attempt to its one outcome."""

    def __init__(
        self, job: Job, number: int, attempts: Attempts, poison: PoisonRequests, config: RouterConfig
    ) -> None:
        self.hedged = False
        self._request = LiveRequest(job, number, asyncio.Queue())
        self._attempts = attempts
        self._poison = poison
        self._config = config
        self._running: list[Attempt] = []
        self._made = 0
        self._preempted = 0  # of them, those that made room for online work
        self._crashes = 0  # workers that died of it, as far as is known
        self._avoid: set[int] = set()  # incarnations that failed it
        self._last: RequestError = NoWorkers("no compatible pair of workers is ready: see /workers")

    async def outcome(self) -> Outcome:
        """Raises what `Dispatch.generate` does."""
        try:
            while True:
                if not self._running:
                    await self._next()
                attempt = await self._request.ended.get()
                self._end(attempt)
                match attempt.outcome:
                    case Result() as result:
                        return self._answer(attempt, result)
                    case Retry() as retry:
                        await self._failed(attempt, retry)
                    case Exception() as error:
                        raise error
        finally:
            for attempt in self._running[:]:
                self._end(attempt)

    @property
    def only_one(self) -> Attempt | None:
        """The attempt that is waited for, if another beside it is allowed: never if workers died of it."""
        if (
            self.hedged
            or self._crashes
            or self._none_left
            or self._request.job.batch
            or len(self._running) != 1
        ):
            return None
        return None if self._running[0].outcome else self._running[0]

    @property
    def _none_left(self) -> bool:
        """Whether no further attempt may be made: those that made room do not count."""
        return self._made - self._preempted == self._config.max_attempts

    def hedge(self, stuck: int) -> bool:
        """Try it on another pair too, without that incarnation; False if there is none in time."""
        (attempt,) = self._running
        avoid = {*self._avoid, attempt.id.prefill, attempt.id.decode}
        try:
            other = self._attempts.begin(self._request, self._made + 1, avoid, {stuck}, accepted=False)
        except RequestError:
            return False
        self._running.append(other)
        self._made, self.hedged = self._made + 1, True
        log.info("request %s: tried on another pair too", self._request.job.rid)
        return True

    async def _next(self) -> None:
        """Begin another attempt, or raise why there is none."""
        if self._crashes:
            self._poison.check(self._request.job, time.monotonic())
        if self._crashes >= self._config.crash_budget:
            problem = f"{self._crashes} workers died while they had this request: it is given up"
            log.error("request %s: %s", self._request.job.rid, problem)
            raise CrashedWorkers(problem)
        if self._none_left:
            raise self._last
        self._made += 1
        try:
            if self._crashes:
                attempt = await self._attempts.begin_alone(self._request, self._made, self._avoid)
            else:
                accepted = self._made > 1
                attempt = self._attempts.begin(self._request, self._made, self._avoid, accepted=accepted)
        except NoWorkers:
            raise self._last from None
        self._running.append(attempt)

    def _end(self, attempt: Attempt) -> None:
        self._running.remove(attempt)
        self._attempts.end(attempt)

    async def _failed(self, attempt: Attempt, retry: Retry) -> None:
        if isinstance(retry.error, Preempted):
            self._preempted += 1
            await asyncio.sleep(min(FIRST_REST * 2.0 ** min(self._preempted - 1, 20), LONGEST_REST))
            return
        log.warning("request %s attempt %d: %s", self._request.job.rid, attempt.id.attempt, retry)
        self._last = retry.error
        if retry.unreached:  # the other one is sound, and the next may have ended with this one's machine
            self._avoid.add(retry.unreached)
            await asyncio.sleep(UNREACHED_REST)
        else:
            self._avoid |= {attempt.id.prefill, attempt.id.decode}
        # In company, somebody else may be to blame: only the first such death counts.
        if retry.crashed and (attempt.alone or not self._crashes):
            self._crashes += 1
        if retry.crashed and attempt.alone:
            self._poison.died(self._request.job, time.monotonic())

    def _answer(self, attempt: Attempt, result: Result) -> Outcome:
        self._poison.survived(self._request.job)
        timing = whole(result.timing, attempt.ended - attempt.started)
        return Outcome(*found_in(result), timing, self._made, result.cached_tokens, result.ceiling)


def whole(timing: Timing, seconds: float) -> Timing:
    """The timing of an attempt that lasted `seconds`, with what lies between its stages."""
    within = timing.queue + timing.prefill + timing.decode
    return msgspec.structs.replace(timing, transfer=max(0.0, seconds - within))
