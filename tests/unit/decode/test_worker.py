"""The decode worker's loop over real sockets, with an engine that only pretends to compute."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from decode_worker.worker import DecodeWorker
from xgr_runtime.catalog import build_from_arrays
from xgr_runtime.config import DecodeConfig
from xgr_runtime.handover import FIRST_LEASE, digest_of
from xgr_runtime.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Commit,
    DecodeRequest,
    Hello,
    Limits,
    ModelIdentity,
    Open,
    Renew,
    ToRouter,
    WorkerHello,
)
from xgr_runtime.transport import Link, Poller, Received

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


class PlayedEngine:
    """Two layers per launch, something to do between them, and searches on which it breaks."""

    ready = True

    def __init__(self) -> None:
        self.pool = SimpleNamespace(pages=4, k=torch.empty(0))
        self.row_budget = 16
        self.counters: dict[str, float] = {}
        self.tail_tokens = 0
        self.between: Callable[[], None] = lambda: None
        self.broken: list[Any] = []

    def choose(self, waiting: list[Any]) -> list[Any]:
        return waiting

    def launch(self, searches: list[Any], on_layer: Callable[[int], None] = lambda layer: None) -> None:
        for layer in range(2):
            self.between()
            on_layer(layer)
        if any(search is bad for search in searches for bad in self.broken):
            raise RuntimeError("a launch that cannot be done")

    def collect(self) -> list[Any]:
        return []


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[DecodeWorker]:
    tmp_path.chmod(0o700)
    config = DecodeConfig(
        model_path="m",
        catalog="c",
        control_address=f"ipc://{tmp_path}/c",
        data_address=f"ipc://{tmp_path}/d",
    )
    catalog = build_from_arrays(["a", "b"], np.array([[1, 2], [1, 3]], np.int32))
    engine: Any = PlayedEngine()
    made = DecodeWorker(config, engine, catalog, IDENTITY, Limits(64, 8))
    yield made
    made.control.listener.close()
    made.data.listener.close()


class PlayedSearch:
    launched = False
    over = False


def searching(worker: DecodeWorker, number: int) -> Any:
    """A request whose search runs."""
    id = AttemptId(1, number, 1, 3, worker.incarnation)
    request = DecodeRequest(id, 10, 1, 4, 2, "vocab", worker.catalog.version, None, b"", 60.0)
    worker.handle_request(request, 0.0)
    search: Any = PlayedSearch()
    worker.tasks[id].search = search
    worker.running.append(worker.tasks[id])
    return search


def test_heartbeats_are_answered_between_the_layers_of_a_launch(worker: DecodeWorker) -> None:
    router: Link[Any] = Link(worker.config.control_address, ToRouter)
    incoming, outgoing = Poller(), Poller()
    incoming.add(router)
    outgoing.add(worker.control.listener)
    answers: list[Any] = []

    def beat() -> None:
        while not router.send(Hello(PROTOCOL, 7)):
            pass
        outgoing.wait(5)

    searching(worker, 0)
    worker.engine.between = beat  # type: ignore[attr-defined]
    worker.launch()
    while len(answers) < 2:
        incoming.wait(5)
        received = router.receive()
        assert received is not None, "no answer during the launch"
        answers.append(received.message)
    assert all(isinstance(answer, WorkerHello) for answer in answers)
    assert answers[0].incarnation == worker.incarnation
    router.close()


def test_a_launch_that_fails_ends_only_the_request_at_fault(worker: DecodeWorker) -> None:
    searches = [searching(worker, number) for number in range(3)]
    worker.engine.broken.append(searches[1])  # type: ignore[attr-defined]
    worker.launch()
    assert [task.id.request for task in worker.running] == [0, 2]
    assert [id.request for id in worker.tasks] == [0, 2] and worker.counters["failed"] == 1
    worker.launch()
    assert len(worker.running) == 2 and worker.counters["failed"] == 1


def test_after_a_launch_the_loop_looks_again_at_once(worker: DecodeWorker) -> None:
    assert worker.idle_seconds() > 0
    worker.worked = True  # what the last launch freed may let somebody start
    assert worker.idle_seconds() == 0


def opened(worker: DecodeWorker, number: int = 1) -> AttemptId:
    """A request whose prefill worker, the peer b"p", has begun."""
    id = AttemptId(1, number, 1, 3, worker.incarnation)
    request = DecodeRequest(id, 10, 1, 4, 2, "vocab", worker.catalog.version, None, b"", 60.0)
    worker.handle_request(request, 0.0)
    worker.open(worker.tasks[id], b"p", Open(id, 10, 0.0), 0.0)
    return id


@pytest.mark.parametrize("change", [{"last_token": -1}, {"last_token": 100}, {"prompt_tokens": 0}], ids=str)
def test_a_request_out_of_range_is_refused(worker: DecodeWorker, change: dict[str, Any]) -> None:
    id = AttemptId(1, 1, 1, 3, worker.incarnation)
    request = DecodeRequest(id, 10, 99, 4, 2, "vocab", worker.catalog.version, None, b"", 60.0)
    worker.handle_request(msgspec.structs.replace(request, **change), 0.0)
    assert not worker.tasks and worker.counters["failed"] == 1
    worker.handle_request(request, 0.0)
    assert id in worker.tasks


def test_an_open_that_comes_twice_waits_for_pages_once(worker: DecodeWorker) -> None:
    id = opened(worker)
    worker.open(worker.tasks[id], b"p", Open(id, 10, 0.0), 0.0)
    assert len(worker.scheduler.waiting) == 1 and worker.counters["stale_messages"] == 1


def test_a_prefill_worker_hears_of_a_longer_lease_in_time(
    worker: DecodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SGLang server does not know --lease: until our first word it holds KV for its own time."""
    worker.config = msgspec.structs.replace(worker.config, lease=90.0)
    sent: list[Any] = []
    monkeypatch.setattr(worker.data, "send", lambda peer, message: sent.append(message))
    id = opened(worker)
    for now in range(1, int(FIRST_LEASE)):
        worker.expire(float(now))
    assert Renew(id, 90.0) in sent


def test_a_message_that_cannot_be_read_fails_the_transfers_of_its_sender(worker: DecodeWorker) -> None:
    mine, other = opened(worker), opened(worker, 2)
    worker.tasks[other].peer = b"q"
    worker.data.listener._bad_peers.add(b"p")
    worker.drop_unreadable()
    assert mine not in worker.tasks and other in worker.tasks
    assert worker.counters["broken_transfers"] == 1


def test_a_cancel_of_prefill_after_the_commit_changes_nothing(worker: DecodeWorker) -> None:
    id = opened(worker)
    worker.tasks[id].committed_at = 1.0
    worker.data._welcome[b"p"] = id.prefill
    worker.handle_data(Received(b"p", Cancel(id, "the lease lapsed"), []), 1.0)
    assert id in worker.tasks


@pytest.mark.parametrize(
    ("checksum", "frames"),
    [(None, [b"\0" * 32]), (7, []), (7, [b"\0" * 32]), (None, [b"", b""])],
    ids=["frame-unannounced", "frame-missing", "frame-damaged", "two-frames"],
)
def test_a_commit_with_the_wrong_frames_fails(
    worker: DecodeWorker, checksum: int | None, frames: list[bytes]
) -> None:
    id = opened(worker)
    task = worker.tasks[id]
    task.receiver.grant(1, 10.0, held_tokens=10)
    commit = Commit(id, 0, digest_of([]), checksum, 0.1)
    worker.take_commit(task, commit, [memoryview(frame) for frame in frames], 1.0)
    assert id not in worker.tasks and worker.counters["broken_transfers"] == 1


def test_a_commit_without_a_hidden_state_is_taken(worker: DecodeWorker) -> None:
    id = opened(worker)
    task = worker.tasks[id]
    task.receiver.grant(1, 10.0, held_tokens=10)
    worker.take_commit(task, Commit(id, 0, digest_of([]), None, 0.1), [], 1.0)
    worker.start_searches()
    assert task.search is not None and task.search.forward_rows == 1


def test_an_open_whose_request_never_comes_is_forgotten(worker: DecodeWorker) -> None:
    id = AttemptId(1, 2, 1, 3, worker.incarnation)
    worker.keep_early(b"peer", Open(id, 10, 0.0), now=100.0)
    worker.expire(100.0 + worker.config.lease)
    assert id in worker.early_opens
    worker.expire(100.1 + worker.config.lease)
    assert not worker.early_opens
