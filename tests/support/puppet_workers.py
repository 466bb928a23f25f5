"""A dispatcher over workers without sockets: a test, or chance, decides what becomes of every attempt."""

import asyncio
import random
import time
from typing import Any

import numpy as np
from played_workers import LOAD, MODEL, VIEW, job_of, result_of

from router.dispatch.attempt import Attempt
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.hedge import hedge
from router.job import Outcome
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalogs
from xgr_runtime.config import RouterConfig
from xgr_runtime.wire.messages import PROTOCOL, Committed, Failed, Limits, Message, WorkerHello

POISON = (6, 6, 6)


class Puppet(Worker):
    """Takes every message and does nothing by itself."""

    incarnations = 100

    def start(self) -> None:
        self.revive()

    def revive(self) -> None:
        Puppet.incarnations += 1
        name, limits = f"{self.address}-{Puppet.incarnations}", Limits(64, 8)
        self._unanswered = 0
        self.meet(
            WorkerHello(
                PROTOCOL, self.role, name, Puppet.incarnations, MODEL, "", [VIEW.version], limits, LOAD
            )
        )

    async def stop(self) -> None: ...

    def send(self, message: Message) -> bool:
        return self.alive

    async def flush_cache(self) -> int:
        return 0

    async def refresh(self) -> None: ...


class Theatre:
    """A dispatcher whose workers are puppets."""

    def __init__(self, seed: int, prefill: int, decode: int, **settings: Any) -> None:
        self.chance = random.Random(seed)
        config = RouterConfig(
            model_path="m",
            catalog="c",
            prefill=[f"p{i}" for i in range(prefill)],
            decode=[f"d{i}" for i in range(decode)],
            heartbeat=60.0,
            **settings,
        )
        self.dispatcher = Dispatcher(config, Catalogs(VIEW))
        self.dispatcher.start()

    @property
    def workers(self) -> list[Any]:
        return list(self.dispatcher._workers)

    @property
    def live(self) -> list[Attempt]:
        return list(self.dispatcher._attempts._live.values())

    def ask(self, rid: str, tokens: tuple[int, ...]) -> "asyncio.Task[Outcome]":
        job = job_of(rid, tokens, time.monotonic() + 600.0)
        return asyncio.create_task(self.dispatcher.generate(job))

    def commit(self, attempt: Attempt) -> None:
        attempt.decode._on_message(attempt.decode, Committed(attempt.id))

    def answer(self, attempt: Attempt, sound: bool = True) -> None:
        result = result_of(attempt)
        if not sound:
            wrong = np.array([5, -1], np.int32).tobytes()
            result = type(result)(result.id, wrong, result.scores, result.timing)
        attempt.decode._on_message(attempt.decode, result)

    def fail(self, attempt: Attempt) -> None:
        worker = self.chance.choice((attempt.prefill, attempt.decode))
        code = self.chance.choice(("worker_lost", "overloaded"))
        worker._on_message(worker, Failed(attempt.id, worker.role, code, "broken"))

    def hedge(self) -> None:
        hedge(self.dispatcher._tries.values(), 3.0, time.monotonic())

    async def settle(self) -> None:
        """Let everybody who was told something act on it."""
        for _ in range(10):
            await asyncio.sleep(0)
