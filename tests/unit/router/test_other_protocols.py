"""The router's end of a control link: greetings of other versions."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.workers.zmq_worker import WorkerLink
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import (
    PROTOCOL,
    Hello,
    Limits,
    Load,
    ModelIdentity,
    ToDecode,
    WorkerHello,
)

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
HELLO = WorkerHello(PROTOCOL, "decode", "d", 4, MODEL, "", [], Limits(8), Load(0, 0, 0, 1, 0, 0, 0, {}))
HEARTBEAT, SILENCE = 0.02, 0.5


class Played:
    """A link to a worker that the test plays."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self.listener: Listener[Any] = Listener(f"ipc://{folder}/d", ToDecode)
        self.beats = 0
        self.peer = b""

        def told(*_: object) -> None:
            """Nobody asks anything of it."""

        self.link = WorkerLink(self.listener.address, "decode", 7, "router-0", HEARTBEAT, SILENCE, told, told)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                for received in self.listener.receive_some():
                    assert received.message == Hello(PROTOCOL, 7, "router-0")
                    self.peer = received.peer
                    self.beats += 1
                await asyncio.sleep(0.005)


@asynccontextmanager
async def played(folder: Path) -> AsyncIterator[Played]:
    made = Played(folder)
    made.link.start()
    await made.until(lambda: made.beats > 0)
    yield made
    await made.link.stop()
    made.listener.close()


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_a_worker_of_another_version_is_named_and_asked_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: int
) -> None:
    async def run() -> None:
        async with played(tmp_path) as p:
            greeting = {"type": "worker_hello", "protocol": protocol, "news": {"all": "of it"}}
            p.listener.socket.send_multipart([p.peer, msgspec.msgpack.encode(greeting)])
            said = f"it speaks protocol {protocol}, this router {PROTOCOL}"
            await p.until(lambda: p.link.problem == said)
            assert not p.link.alive and said in caplog.text
            loop = asyncio.get_running_loop()
            first, began = p.beats, loop.time()
            await p.until(lambda: p.beats >= first + 5)
            assert loop.time() - began > 1.5 * SILENCE, "three heartbeats may have been under way"
            assert p.listener.send(p.peer, HELLO)
            await p.until(lambda: p.link.alive)
            assert not p.link.problem

    asyncio.run(run())
