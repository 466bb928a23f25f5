"""Peers without manners at every port of real workers, which live on and serve who speaks their protocol."""

from __future__ import annotations

import marshal
import os
import pickle
import random
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from made_catalogs import build_from_arrays
from played_engine import PlayedEngine

from decode_worker.worker import DecodeWorker
from prefill_worker.worker import PrefillWorker
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.transport import Link, Listener, Poller
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Hello,
    Limits,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    ModelIdentity,
    Open,
    ToPrefillData,
    ToRouter,
    WorkerHello,
)

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
NESTED = b"\x91" * 100_000 + b"\xc0"


UNPICKLED = "UNPICKLED_BY_A_PEER"


class Runs:
    """Its pickle proves that it was unpickled."""

    def __reduce__(self) -> Any:
        return exec, (f"import os; os.environ[{UNPICKLED!r}] = 'yes'",)


def frames() -> list[list[bytes]]:
    """What they send as messages: pickles of two kinds, random bytes, depth, many parts."""
    chance = random.Random(6)
    junk = [chance.randbytes(chance.randrange(200)) for _ in range(100)]
    bodies = [
        pickle.dumps(Runs()),
        pickle.dumps({"type": "hello"}, 0),
        marshal.dumps([1]),
        NESTED,
        b"",
        *junk,
    ]
    return [*([body] for body in bodies), [b"\x80"] * 100, [pickle.dumps(Runs())] * 3]


@pytest.fixture
def prefill() -> Iterator[PrefillWorker]:
    config = PrefillConfig(model_path="m", control_address="tcp://127.0.0.1:*", heartbeat=0.02)
    engine: Any = SimpleNamespace(max_prompts=None, pool=None)
    worker = PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=32)
    yield from running(worker, [worker.desk.control.listener])


@pytest.fixture
def decode() -> Iterator[DecodeWorker]:
    config = DecodeConfig(
        model_path="m",
        catalog="c",
        control_address="tcp://127.0.0.1:*",
        data_address="tcp://127.0.0.1:*",
        advertise_data_address="tcp://127.0.0.1:1",  # nobody sends KV there
        heartbeat=0.02,
    )
    catalog = build_from_arrays(["a", "b"], np.array([[1, 2], [1, 3]], np.int32))
    engine: Any = PlayedEngine()
    worker = DecodeWorker(config, engine, Catalogs(CatalogView(catalog)), IDENTITY, Limits(64, 8))
    yield from running(worker, [worker.desk.control.listener, worker.inbound.data.listener])


def running(worker: Any, listeners: list[Listener[Any]]) -> Iterator[Any]:
    """The worker, whose loop turns; what it dies of fails the test."""
    stop, died = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            worker.run(stop.is_set)
        except BaseException as error:
            died.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield worker
    stop.set()
    thread.join(10)
    for listener in listeners:
        listener.close()
    assert not died and not thread.is_alive()


def intrude(address: str) -> None:
    """Bytes that are no ZeroMQ at all, then ZeroMQ messages that are none of ours."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    for raw in (pickle.dumps(Runs()), random.Random(7).randbytes(4096), b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw)
    for kind in (zmq.DEALER, zmq.REQ):
        peer: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        peer.connect(address)
        for parts in frames()[: None if kind == zmq.DEALER else 1]:
            peer.send_multipart(parts)  # waits, unlike `throw`: they are counted
        peer.close(linger=2000)


def heard(link: Link[Any], message: Any, *frames: bytes) -> Any:
    """What is answered to a message."""
    until, poller = time.monotonic() + 10, Poller()
    poller.add(link)
    while not link.send(message, *frames):
        assert time.monotonic() < until
        time.sleep(0.002)
    while (received := link.receive()) is None:
        assert time.monotonic() < until, "no answer"
        poller.wait(0.1)
    return received.message


def bad(worker: Any, address: str) -> float:
    """How many messages it says it could not read."""
    link: Link[Any] = Link(address, ToRouter)
    hello = heard(link, Hello(PROTOCOL, 7, "router-0"))
    link.close()
    assert isinstance(hello, WorkerHello) and hello.incarnation == worker.desk.incarnation
    return hello.load.counters["bad_messages"]


def expect_bad(worker: Any, address: str, least: int) -> None:
    until = time.monotonic() + 10
    while bad(worker, address) < least:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_prefill_worker_lives_on(prefill: PrefillWorker) -> None:
    address = prefill.desk.control.listener.address
    intrude(address)
    expect_bad(prefill, address, len(frames()))
    assert UNPICKLED not in os.environ


def test_a_decode_worker_lives_on(decode: DecodeWorker) -> None:
    control, data = decode.desk.control.listener.address, decode.inbound.data.listener.address
    intrude(control)
    intrude(data)
    expect_bad(decode, control, 2 * len(frames()))
    link: Link[Any] = Link(data, ToPrefillData)
    stale = Open(AttemptId(1, 1, 1, 3, decode.desk.incarnation), 4, 0.0)
    assert isinstance(heard(link, stale), LinkRefused)
    assert heard(link, LinkHello(PROTOCOL, "p", 3, IDENTITY)) == LinkWelcome(decode.desk.incarnation)
    link.close()
    assert UNPICKLED not in os.environ


def test_the_pickle_proves_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNPICKLED, "")
    pickle.loads(pickle.dumps(Runs()))
    assert os.environ[UNPICKLED]
