"""A worker's desk: what it makes of routers' messages, whoever holds the requests behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgr_runtime.errors import Overloaded, RequestError
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    CacheFlushed,
    Cancel,
    Committed,
    Failed,
    FlushCache,
    Hello,
    Limits,
    Load,
    ModelIdentity,
    PrefillRequest,
    ToPrefill,
    WorkerHello,
)
from xgr_runtime.worker.control import LISTEN_EVERY, ROUTER_REPLACED
from xgr_runtime.worker.desk import Desk

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


class PlayedHolder:
    """Holds what it accepts, unless it is to raise something."""

    def __init__(self) -> None:
        self.cache = PromptCache(PagePool(4), 16)
        self.held: list[AttemptId] = []
        self.ended: list[tuple[AttemptId, RequestError]] = []
        self.raises: BaseException | None = None

    def introduce(self) -> WorkerHello:
        load = Load(len(self.held), 0, 0, 4, 0, 0, 0, {})
        return WorkerHello(PROTOCOL, "prefill", "p", 4, MODEL, "", [], Limits(8), load)

    def holds(self, id: AttemptId) -> bool:
        return id in self.held

    def accept(self, request: PrefillRequest, now: float) -> None:
        if self.raises is not None:
            raise self.raises
        self.held.append(request.id)

    def cancel(self, id: AttemptId) -> None:
        if self.raises is not None:
            raise self.raises
        self.held.remove(id)

    def fail(self, id: AttemptId, error: RequestError) -> None:
        self.held.remove(id)
        self.ended.append((id, error))

    def part_with(self, router: int, error: RequestError) -> None:
        for id in [id for id in self.held if id.router == router]:
            self.fail(id, error)


class Played:
    """A desk, who holds its requests, and what routers hear."""

    def __init__(self, address: str) -> None:
        self.holder = PlayedHolder()
        listener: Listener[Any] = Listener(address, ToPrefill)
        self.desk = Desk(self.holder, "prefill", PrefillRequest, listener, silence=5.0)
        self.said: list[Any] = []
        self.desk.control.send = self.hear  # type: ignore[method-assign]

    def hear(self, router: int, message: Any) -> bool:
        self.said.append(message)
        return True

    def ask(self, number: int, run: int | None = None, router: int = 1) -> AttemptId:
        """A request for this run of the worker, or for another."""
        id = AttemptId(router, number, 1, self.desk.incarnation if run is None else run, 9)
        self.desk.take(PrefillRequest(id, "ipc:///d", b"\1\0\0\0", 5.0), 0.0)
        return id


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    tmp_path.chmod(0o700)
    made = Played(f"ipc://{tmp_path}/c")
    yield made
    made.desk.control.listener.close()


def test_requests_are_held_once_and_by_the_run_they_name(played: Played) -> None:
    id = played.ask(1)
    played.ask(1)
    played.ask(2, run=played.desk.incarnation + 1)
    played.desk.take(Committed(id), 0.0)
    assert played.holder.held == [id] and not played.said
    assert played.desk.counters["stale_messages"] == 3
    played.desk.take(Cancel(id, "not wanted"), 0.0)
    assert not played.holder.held


def test_a_refused_request_is_reported_with_its_error(played: Played) -> None:
    played.holder.raises = Overloaded("too many requests")
    id = played.ask(1)
    assert played.said == [Failed(id, "prefill", "overloaded", "too many requests")]
    assert played.desk.counters["failed"] == 1


def test_what_nobody_had_thought_of_ends_one_request(
    played: Played, caplog: pytest.LogCaptureFixture
) -> None:
    kept, hurt = played.ask(1), played.ask(2)
    played.holder.raises = KeyError("nobody had thought of this")
    refused = played.ask(3)
    played.desk.take(Cancel(hurt, "not wanted"), 0.0)
    assert [(message.id, message.code) for message in played.said] == [(refused, "internal_error")]
    assert [(id, error.code) for id, error in played.holder.ended] == [(hurt, "internal_error")]
    assert played.holder.held == [kept]
    assert "nobody had thought" in caplog.text and "nobody had thought" not in played.said[0].message


def test_a_flush_is_answered_with_the_pages_that_came_free(played: Played) -> None:
    cache = played.holder.cache
    held = cache.begin(tokens := np.arange(33, dtype=np.int32))
    assert held is not None
    cache.keep(held, len(tokens))
    cache.end(held)
    played.desk.take(FlushCache(7, 3), 0.0)
    assert played.said == [CacheFlushed(3, 2)]


def test_what_a_router_that_is_gone_asked_for_ends(played: Played) -> None:
    gone, kept = played.ask(1, router=1), played.ask(1, router=2)
    for router, name in ((1, "router-0"), (2, "router-1"), (5, "router-0")):
        played.desk.control._greet(Hello(PROTOCOL, router, name), b"peer", 0.0)
    played.desk.dismiss_gone(0.0)
    played.desk.dismiss_gone(0.0)
    ((id, error),) = played.holder.ended
    assert (
        id == gone and error.message == ROUTER_REPLACED and error.elsewhere and played.holder.held == [kept]
    )


def test_it_is_time_to_listen_again_after_a_while(played: Played) -> None:
    assert played.desk.deaf(0.0)
    played.desk.listen(0.0)
    assert not played.desk.deaf(LISTEN_EVERY / 2) and played.desk.deaf(LISTEN_EVERY)
