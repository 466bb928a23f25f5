"""Workers that a test plays itself, over real sockets, and a dispatcher before them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from made_catalogs import build_from_arrays
from msgspec.structs import replace

from router.dispatch.attempt import Attempt
from router.dispatch.dispatcher import Dispatcher
from router.job import Job, Outcome
from xgr_runtime.catalog import Catalogs, CatalogView, FilterSpec
from xgr_runtime.config import RouterConfig
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import (
    PROTOCOL,
    DecodeRequest,
    Hello,
    Limits,
    Load,
    Message,
    ModelIdentity,
    Result,
    Role,
    Timing,
    ToDecode,
    ToPrefill,
    WorkerHello,
)


def view_of(leaves: int) -> CatalogView:
    """A catalog of so many items, each of one token."""
    sids = np.arange(leaves, dtype=np.int32)[:, None]
    return CatalogView(build_from_arrays([str(leaf) for leaf in range(leaves)], sids))


MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
TIMING = Timing(0.0, 0.0, 0.0, 0.0, 0.0)
LOAD = Load(0, 0, 0, 8, 0, 0, 0, {})
LEAVES = 100
VIEW = view_of(LEAVES)


class PlayedWorker:
    """Answers heartbeats by itself unless `mute`; everything else waits in `inbox` for the test."""

    def __init__(self, address: str, role: Role, incarnation: int, model: ModelIdentity = MODEL) -> None:
        self.address = address
        self.mute = False
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.hello = WorkerHello(
            PROTOCOL,
            role,
            f"{role}-{incarnation}",
            incarnation,
            model,
            "ipc:///data",
            [VIEW.version],
            Limits(64, 8),
            LOAD,
        )
        self._listener: Listener[Any] = Listener(address, ToPrefill if role == "prefill" else ToDecode)
        self._peer = b""
        self._task = asyncio.create_task(self._run())

    def send(self, message: Message) -> None:
        assert self._listener.send(self._peer, message)

    async def next(self, kind: type[Any]) -> Any:
        """The next message, which has to be of this kind."""
        async with asyncio.timeout(5):
            message = await self.inbox.get()
        assert isinstance(message, kind), message
        return message

    def die(self) -> None:
        self._task.cancel()
        self._listener.close()

    async def _run(self) -> None:
        while True:
            while (received := self._listener.receive()) is not None:
                self._peer = received.peer
                if isinstance(received.message, Hello):
                    if not self.mute:
                        self._listener.send(self._peer, replace(self.hello, number=received.message.number))
                else:
                    self.inbox.put_nowait(received.message)
            await asyncio.sleep(0.001)


class Stage:
    """A dispatcher and the played workers around it."""

    def __init__(self, folder: Path, prefill: int, decode: int, **settings: Any) -> None:
        self.prefill = [PlayedWorker(f"ipc://{folder}/p{i}", "prefill", 10 + i) for i in range(prefill)]
        self.decode = [PlayedWorker(f"ipc://{folder}/d{i}", "decode", 20 + i) for i in range(decode)]
        config = RouterConfig(
            model_path="m",
            catalog="c",
            prefill=[w.address for w in self.prefill],
            decode=[w.address for w in self.decode],
            heartbeat=0.05,
            **settings,
        )
        self.catalogs = Catalogs(VIEW)
        self.dispatcher = Dispatcher(config, self.catalogs)

    def ask(
        self, rid: str = "r", seconds: float = 5.0, tokens: Sequence[int] = (1, 2, 3), priority: int = 0
    ) -> "asyncio.Task[Outcome]":
        job = job_of(rid, tokens, time.monotonic() + seconds, priority)
        return asyncio.create_task(self.dispatcher.generate(job))

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, and nothing is booked."""
        attempts = self.dispatcher._attempts
        left = attempts._live or attempts._alone or attempts.admission.backlogs
        return not left and not any(w.load or w.in_flight for w in self.dispatcher._workers)


def job_of(
    rid: str = "r", tokens: Sequence[int] = (1, 2, 3), deadline: float = 0.0, priority: int = 0
) -> Job:
    return Job(rid, np.array(tokens, np.int32), 4, 2, "vocab", VIEW, filter_of(), deadline, priority)


def filter_of(allow: Sequence[int] | None = None, deny: Sequence[int] = ()) -> FilterSpec:
    """Of leaves, where every item has its own."""
    allowed, denied = None if allow is None else np.array(allow, np.int32), np.array(deny, np.int32)
    return FilterSpec(allowed, denied, allowed, denied, 0, 0)


@asynccontextmanager
async def stage(folder: Path, prefill: int = 1, decode: int = 1, **settings: Any) -> AsyncIterator[Stage]:
    folder.chmod(0o700)
    made = Stage(folder, prefill, decode, **settings)
    made.dispatcher.start()
    await until(lambda: all(worker.alive for worker in made.dispatcher.workers()))
    yield made
    for worker in [*made.prefill, *made.decode]:
        worker.die()
    await made.dispatcher.stop()


def play(test: Callable[..., Awaitable[None]]) -> Callable[[Path], None]:
    """Runs an async test in a loop of its own."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 30))

    run.__name__, run.__doc__ = test.__name__, test.__doc__  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the next heartbeats bring."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def result_of(request: DecodeRequest | Attempt) -> Result:
    leaves, scores = np.array([5, 3], np.int32), np.array([-1.0, -2.0], np.float32)
    return Result(request.id, leaves.tobytes(), scores.tobytes(), TIMING)
