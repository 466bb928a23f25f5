"""The decode worker's loop over real sockets, with an engine that only pretends to compute."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from made_catalogs import build_from_arrays
from played_engine import PlayedEngine

from decode_worker.early_opens import EarlyOpen
from decode_worker.memories import PrefillMemories
from decode_worker.phases import TaskPhase
from decode_worker.task import DecodeTask
from decode_worker.worker import DecodeWorker
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import DeadlineExceeded
from xgr_runtime.handover.protocol import FIRST_LEASE, chunk_checksum, digest_of, range_checksum
from xgr_runtime.kv.pages import PageIds, PagePool
from xgr_runtime.kv.shared_memory import this_process
from xgr_runtime.model.device.device import DeviceLost
from xgr_runtime.model.memory.kv_copies import Copies
from xgr_runtime.model.memory.kv_memory import exported_memory, mapped_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.transport import Link, Poller, Received
from xgr_runtime.wire.messages import (
    PROTOCOL,
    Ack,
    AttemptId,
    CacheFlushed,
    Cancel,
    Commit,
    Credit,
    DecodeRequest,
    Failed,
    FlushCache,
    Grant,
    Hello,
    KvChunk,
    KvReady,
    Limits,
    LinkHello,
    ModelIdentity,
    Nack,
    Open,
    Renew,
    ToRouter,
    WorkerHello,
)
from xgr_runtime.worker.control import LISTEN_EVERY

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
TOKENS = np.arange(90, 100, dtype=np.int32).tobytes()  # a prompt


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
    made = DecodeWorker(config, engine, Catalogs(CatalogView(catalog)), IDENTITY, Limits(64, 8))
    yield made
    made.desk.control.listener.close()
    made.inbound.data.listener.close()


class PlayedSearch:
    phase = TaskPhase.SEARCH
    invalid = False
    forward_seconds = 0.0
    forward_rows = 0
    ceiling = None

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(1, np.int32), np.zeros(1, np.float32)


def searching(worker: DecodeWorker, number: int) -> Any:
    """A request whose search runs."""
    id = AttemptId(1, number, 1, 3, worker.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(request, 0.0)
    task = worker.searching[id] = worker.inbound.arriving.pop(id)
    for phase in (TaskPhase.ROWS, TaskPhase.SEARCH):
        task.enter(phase, 0.0)
    search: Any = PlayedSearch()
    task.search = search
    return search


def ids(worker: DecodeWorker) -> list[AttemptId]:
    """Of the attempts that are not over."""
    return [task.id for task in worker.tasks]


def numbers(worker: DecodeWorker) -> list[int]:
    """Of their requests."""
    return [id.request for id in ids(worker)]


def test_heartbeats_are_answered_between_the_layers_of_a_launch(worker: DecodeWorker) -> None:
    router: Link[Any] = Link(worker.config.control_address, ToRouter)
    incoming, outgoing = Poller(), Poller()
    incoming.add(router)
    outgoing.add(worker.desk.control.listener)
    answers: list[Any] = []

    def beat() -> None:
        while not router.send(Hello(PROTOCOL, 7, "router-0")):
            pass
        outgoing.wait(5)
        time.sleep(LISTEN_EVERY)  # a layer may well take longer

    searching(worker, 0)
    worker.engine.between = beat  # type: ignore[attr-defined]
    worker.launch()
    while len(answers) < 2:
        incoming.wait(5)
        received = router.receive()
        assert received is not None, "no answer during the launch"
        answers.append(received.message)
    assert all(isinstance(answer, WorkerHello) for answer in answers)
    assert answers[0].incarnation == worker.desk.incarnation
    router.close()


def test_a_launch_that_fails_ends_only_the_request_at_fault(worker: DecodeWorker) -> None:
    searches = [searching(worker, number) for number in range(3)]
    worker.engine.broken.append(searches[1])  # type: ignore[attr-defined]
    worker.launch()
    assert [task.id.request for task in worker.running] == [0, 2]
    assert numbers(worker) == [0, 2] and worker.counters["failed"] == 1
    worker.launch()
    assert len(worker.running) == 2 and worker.counters["failed"] == 1


def kept(worker: DecodeWorker, count: int) -> tuple[Any, list[Any]]:
    """The engine, which keeps what it launches, and so many searches that it may have."""
    engine: Any = worker.engine
    engine.keeps = True
    return engine, [searching(worker, number) for number in range(count)]


def test_a_search_in_flight_is_launched_once_and_answered_when_it_is_over(worker: DecodeWorker) -> None:
    engine, (first, second) = kept(worker, 2)
    engine.choose = lambda waiting: waiting[:1]
    for _ in range(3):
        worker.launch()
        worker.answer_finished()
    assert engine.launches == [[first], [second]] and len(worker.tasks) == 2
    engine.finished = [second]
    worker.answer_finished()
    assert numbers(worker) == [0] and worker.counters["answered"] == 1


def test_an_engine_that_is_not_ready_gets_nothing(worker: DecodeWorker) -> None:
    engine, (search,) = kept(worker, 1)
    engine.ready = False
    worker.launch()
    assert not engine.launches
    engine.ready = True
    worker.launch()
    assert engine.launches == [[search]]


def test_a_request_cancelled_in_flight_is_forgotten_and_its_end_ignored(worker: DecodeWorker) -> None:
    engine, (search, other) = kept(worker, 2)
    first = worker.tasks[0]
    worker.scheduler.waiting.add(first)
    assert [len(held.pages) for _, held in worker.scheduler.next_grants(0.0)] == [1]
    worker.launch()
    worker.desk.take(Cancel(first.id, "gone"), 0.0)
    assert numbers(worker) == [1]
    assert worker.cache.used == 1, "the launch still reads them"
    engine.finished = [search]
    worker.answer_finished()
    assert worker.cache.used == 0 and worker.counters["answered"] == 0
    engine.finished = [other]
    worker.answer_finished()
    assert not worker.tasks and worker.counters["answered"] == 1


NEWER = CatalogView(build_from_arrays(["a", "b"], np.array([[1, 2], [1, 4]], np.int32)))


def test_a_version_is_held_until_its_last_search_is_over(worker: DecodeWorker) -> None:
    engine, (search, other) = kept(worker, 2)
    old = worker.catalogs.newest.version
    first, second = worker.tasks
    worker.launch()
    worker.catalogs.add(NEWER)
    worker.fail(first.id, DeadlineExceeded("late"))
    worker.desk.take(Cancel(second.id, "gone"), 0.0)
    assert not worker.tasks and worker.introduce().catalogs == [old, NEWER.version], "a launch reads it"
    engine.finished = [search]
    worker.answer_finished()
    assert worker.introduce().catalogs == [old, NEWER.version]
    engine.finished = [other]
    worker.answer_finished()
    assert worker.introduce().catalogs == [NEWER.version]


def test_a_request_gets_the_version_that_it_names(worker: DecodeWorker) -> None:
    searching(worker, 0)
    (old,) = worker.tasks
    worker.catalogs.add(NEWER)
    searching(worker, 1)
    request = DecodeRequest(
        AttemptId(1, 2, 1, 3, worker.desk.incarnation),
        TOKENS,
        4,
        2,
        "vocab",
        old.lease.view.version,
        None,
        b"",
        9.0,
    )
    worker.desk.take(request, 0.0)
    levels = {task.id.request: task.question.trie.tokens[-1].tolist() for task in worker.tasks}
    assert levels == {0: [2, 3], 1: [2, 4], 2: [2, 3]}


@pytest.mark.parametrize(("version", "deny"), [("gone", b""), (None, np.array([7], np.int32).tobytes())])
def test_a_refused_request_holds_no_version(worker: DecodeWorker, version: str | None, deny: bytes) -> None:
    id = AttemptId(1, 1, 1, 3, worker.desk.incarnation)
    named = version or worker.catalogs.newest.version
    worker.desk.take(DecodeRequest(id, TOKENS, 4, 2, "vocab", named, None, deny, 9.0), 0.0)
    assert not worker.tasks and worker.counters["failed"] == 1
    worker.catalogs.add(NEWER)
    assert worker.catalogs.versions == [NEWER.version]


class PlayedTurns:
    """A GPU that another worker has, wants or does not want."""

    def __init__(self) -> None:
        self.free, self.wanting, self.said = True, False, list[str]()

    def try_take(self) -> bool:
        return self.free

    def wanted(self) -> bool:
        return self.wanting

    def give(self) -> None:
        self.said.append("give")

    def forget(self) -> None:
        self.said.append("forget")

    def want(self) -> None:
        pass


def test_a_launch_is_prepared_before_the_gpu_is_ours(worker: DecodeWorker) -> None:
    engine, (search,) = kept(worker, 1)
    order: list[str] = []
    worker.device_turns = turns = PlayedTurns()  # type: ignore[assignment]
    turns.free = False
    turns.want = lambda: order.append("want")  # type: ignore[method-assign]
    turns.try_take = lambda: order.append("take") or turns.free  # type: ignore[func-returns-value, method-assign]
    engine.prepare = lambda searches: order.append("prepare")
    launch = engine.launch
    engine.launch = lambda *args, **kwargs: order.append("launch") or launch(*args, **kwargs)
    worker.launch()
    turns.free = True
    worker.launch()
    assert order == ["want", "prepare", "take"] * 2 + ["launch"] and engine.launches == [[search]]


def test_what_cannot_be_prepared_is_found_out_by_its_launch(worker: DecodeWorker) -> None:
    engine, (search, bad) = kept(worker, 2)

    def refuse(searches: list[Any]) -> None:
        raise RuntimeError("no plan for these")

    engine.prepare = refuse
    engine.broken = [bad]
    worker.launch()
    assert engine.launches == [[search]] and worker.counters["failed"] == 1


def test_a_gpu_that_another_worker_has_is_asked_for_again(worker: DecodeWorker) -> None:
    engine, (search,) = kept(worker, 1)
    worker.device_turns = turns = PlayedTurns()  # type: ignore[assignment]
    turns.free = False
    worker.launch()
    assert not engine.launches and turns.said == []
    turns.free = True
    worker.launch()
    assert engine.launches == [[search]]
    worker.launch()
    assert turns.said == ["forget"], "nothing waits for the GPU any more"


def test_a_gpu_that_another_worker_wants_is_given_once_the_queue_is_empty(worker: DecodeWorker) -> None:
    engine, (first, second) = kept(worker, 2)
    worker.device_turns = turns = PlayedTurns()  # type: ignore[assignment]
    engine.choose = lambda waiting: waiting[:1]
    worker.launch()
    engine.busy, turns.wanting = True, True
    worker.launch()
    worker.answer_finished()
    assert engine.launches == [[first]] and turns.said == []
    engine.busy, engine.finished = False, [first]
    worker.answer_finished()
    assert turns.said == ["give"]
    worker.launch()
    assert engine.launches == [[first], [second]]


def test_a_lost_device_ends_the_process(worker: DecodeWorker) -> None:
    engine, _ = kept(worker, 1)

    def lose(searches: list[Any], on_layer: Callable[[int], None]) -> None:
        raise DeviceLost("it fell off the bus")

    engine.launch = lose
    with pytest.raises(DeviceLost):
        worker.launch()
    assert worker.tasks, "nobody is told that the request failed: it is tried elsewhere"


def test_a_device_lost_while_requests_are_tried_alone_ends_the_process(worker: DecodeWorker) -> None:
    engine, _ = kept(worker, 2)

    def lose(searches: list[Any], on_layer: Callable[[int], None] = lambda layer: None) -> None:
        raise (
            RuntimeError("a kernel failed") if len(searches) > 1 else DeviceLost("and took the device along")
        )

    engine.launch = lose
    with pytest.raises(DeviceLost):
        worker.launch()
    assert len(worker.tasks) == 2, "nobody is told that a request failed: they are tried elsewhere"


def test_the_loop_does_not_sleep_while_a_launch_flies_for_nobody(worker: DecodeWorker) -> None:
    engine, _ = kept(worker, 1)
    worker.launch()
    engine.busy = True
    worker.desk.take(Cancel(ids(worker)[0], "gone"), 0.0)
    assert not worker.running and worker.idle_seconds() == 0
    engine.busy = False
    assert worker.idle_seconds() > 0


def test_after_a_launch_the_loop_looks_again_at_once(worker: DecodeWorker) -> None:
    assert worker.idle_seconds() > 0
    worker.worked = True  # what the last launch freed may let somebody start
    assert worker.idle_seconds() == 0


def opened(worker: DecodeWorker, number: int = 1) -> AttemptId:
    """A request whose prefill worker, the peer b"p", has begun."""
    id = AttemptId(1, number, 1, 3, worker.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(request, 0.0)
    worker.inbound.open(worker.inbound.arriving[id], b"p", Open(id, 10, 0.0), 0.0)
    return id


@pytest.mark.parametrize("tokens", [(1, -1), (1, 100), ()], ids=str)
def test_a_request_out_of_range_is_refused(worker: DecodeWorker, tokens: tuple[int, ...]) -> None:
    id = AttemptId(1, 1, 1, 3, worker.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(msgspec.structs.replace(request, tokens=np.array(tokens, np.int32).tobytes()), 0.0)
    assert not worker.tasks and worker.counters["failed"] == 1
    worker.desk.take(request, 0.0)
    assert id in ids(worker)


def test_an_open_that_comes_twice_waits_for_pages_once(worker: DecodeWorker) -> None:
    id = opened(worker)
    worker.inbound.open(worker.inbound.arriving[id], b"p", Open(id, 10, 0.0), 0.0)
    assert len(worker.scheduler.waiting) == 1 and worker.counters["stale_messages"] == 1


def test_a_prefill_worker_hears_of_a_longer_lease_in_time(
    worker: DecodeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SGLang server does not know --lease: until our first word it holds KV for its own time."""
    worker.inbound.config = msgspec.structs.replace(worker.config, lease=90.0)
    sent: list[Any] = []
    monkeypatch.setattr(worker.inbound.data, "send", lambda peer, message: sent.append(message))
    id = opened(worker)
    for now in range(1, int(FIRST_LEASE)):
        worker.expire(float(now))
    assert Renew(id, 90.0) in sent


def test_a_message_that_cannot_be_read_fails_the_transfers_of_its_sender(worker: DecodeWorker) -> None:
    opened(worker)
    other = opened(worker, 2)
    worker.inbound.arriving[other].peer = b"q"
    worker.inbound.data.listener._bad_peers.add(b"p")
    worker.inbound.drop_unreadable()
    assert ids(worker) == [other]
    assert worker.counters["broken_transfers"] == 1


def test_a_cancel_of_prefill_after_the_commit_changes_nothing(worker: DecodeWorker) -> None:
    id = opened(worker)
    worker.inbound.arriving[id].receiver.grant(1, 10.0, held_tokens=10)
    worker.inbound.take_commit(worker.inbound.arriving[id], Commit(id, 0, digest_of([]), None, 0.1), [], 1.0)
    worker.take_over(worker.inbound.settle(1.0))
    worker.inbound.data._welcome[b"p"] = id.prefill
    worker.inbound.handle(Received(b"p", Cancel(id, "the lease lapsed"), []), 1.0)
    assert id in ids(worker)


@pytest.mark.parametrize(
    ("checksum", "frames"),
    [(None, [b"\0" * 32]), (7, []), (7, [b"\0" * 32]), (None, [b"", b""])],
    ids=["frame-unannounced", "frame-missing", "frame-damaged", "two-frames"],
)
def test_a_commit_with_the_wrong_frames_fails(
    worker: DecodeWorker, checksum: int | None, frames: list[bytes]
) -> None:
    id = opened(worker)
    task = worker.inbound.arriving[id]
    task.receiver.grant(1, 10.0, held_tokens=10)
    commit = Commit(id, 0, digest_of([]), checksum, 0.1)
    worker.inbound.take_commit(task, commit, [memoryview(frame) for frame in frames], 1.0)
    assert id not in ids(worker) and worker.counters["broken_transfers"] == 1


def test_a_commit_without_a_hidden_state_is_taken(worker: DecodeWorker) -> None:
    id = opened(worker)
    task = worker.inbound.arriving[id]
    task.receiver.grant(1, 10.0, held_tokens=10)
    worker.inbound.take_commit(task, Commit(id, 0, digest_of([]), None, 0.1), [], 1.0)
    worker.take_over(worker.inbound.settle(1.0))
    worker.start_searches(0.0)
    assert task.search is not None and task.search.forward_rows == 1


def test_an_open_whose_request_never_comes_is_forgotten(worker: DecodeWorker) -> None:
    id = AttemptId(1, 2, 1, 3, worker.desk.incarnation)
    worker.inbound.keep_early(EarlyOpen(b"peer", Open(id, 10, 0.0), 100.0))
    worker.expire(100.0 + worker.config.lease)
    assert id in worker.inbound.early_opens
    worker.expire(100.1 + worker.config.lease)
    assert not worker.inbound.early_opens


# --- prompts that lie in the prefill worker's memory ---


def offered_by(worker: DecodeWorker, in_place: bool) -> PagePool:
    """A prefill worker's pool of 8 pages of 4 tokens that this worker has mapped; incarnation 3."""
    identity = ModelIdentity("", "float32", 2, 1, 4, 8, 100, 1)
    exported = exported_memory(identity, 8, 4, torch.device("cpu"))
    assert exported.shared is not None
    theirs = KvPool(identity, 8, 4, exported)
    theirs.k.fill_(1.0)
    theirs.v.fill_(2.0)
    pool = (
        KvPool(identity, 8, 4, mapped_memory(exported.shared, identity))
        if in_place
        else KvPool(identity, 4, 16)
    )
    worker.engine.pool = pool
    worker.inbound.memories = PrefillMemories(pool, in_place, pull=True)
    worker.inbound.chunks.copies = Copies(pool)
    assert not worker.inbound.memories.greeted(LinkHello(PROTOCOL, "prefill-0", 3, IDENTITY, exported.shared))
    return PagePool(8, exported.generations)


class Heard(list[Any]):
    """What the worker sent to its prefill worker."""

    def __call__(self, peer: bytes, message: Any) -> bool:
        self.append(message)
        return True


@pytest.fixture
def heard(worker: DecodeWorker, monkeypatch: pytest.MonkeyPatch) -> Heard:
    sent = Heard()
    monkeypatch.setattr(worker.inbound.data, "send", sent)
    worker.inbound.data._welcome[b"p"] = 3
    return sent


def opened_in(worker: DecodeWorker, theirs: PagePool) -> tuple[DecodeTask, PageIds]:
    """A prompt of 10 tokens in three of their pages."""
    pages = theirs.allocate(3)
    assert pages is not None
    id = AttemptId(1, 1, 1, 3, worker.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(request, 0.0)
    named = (pages.tobytes(), theirs.generations[pages].tobytes())
    worker.inbound.open(worker.inbound.arriving[id], b"p", Open(id, 10, 0.0, *named), 0.0)
    return worker.inbound.arriving[id], pages


def whole(task: DecodeTask) -> KvReady:
    return KvReady(task.id, 0, 0, 2, 0, 10, 0, 1)


def commit_of(task: DecodeTask, *chunks: KvReady) -> Commit:
    return Commit(task.id, len(chunks), digest_of(map(range_checksum, chunks)), None, 0.1)


def say(worker: DecodeWorker, message: Any, now: float = 1.0) -> None:
    worker.inbound.handle(Received(b"p", message, []), now)
    worker.take_over(worker.inbound.settle(now))


def test_kv_that_cannot_be_written_does_not_count_as_received(worker: DecodeWorker, heard: Heard) -> None:
    """Also between the layers of a step, where an error would pass for the step's own."""
    task, _ = opened_in(worker, offered_by(worker, in_place=False))
    worker.inbound.grant_pages(0.0)

    def full(*_: object) -> None:
        raise MemoryError

    worker.inbound.chunks.copies.pull = full  # type: ignore[method-assign, assignment]
    worker.inbound.answer(task, worker.inbound.chunks.pull(task, whole(task)))
    assert isinstance(heard[-1], Nack) and not worker.tasks and not worker.cache.used


def test_a_prompt_is_pulled(worker: DecodeWorker, heard: Heard) -> None:
    theirs = offered_by(worker, in_place=False)
    task, _ = opened_in(worker, theirs)
    worker.inbound.grant_pages(0.0)
    say(worker, whole(task))
    say(worker, commit_of(task, whole(task)))
    assert [type(message) for message in heard] == [Grant, Credit, Ack] and heard[0].way == "pull"
    k, v = worker.engine.pool.read(1, task.pages, 0, 10)
    assert (k == 1.0).all() and (v == 2.0).all()
    assert worker.counters["kv_bytes"] == worker.counters["kv_bytes_pulled"] == 10 * IDENTITY.token_bytes
    assert worker.cache.used == 1 and task in worker.scheduler.ready


def test_a_commit_waits_for_the_copies_before_it(worker: DecodeWorker, heard: Heard) -> None:
    task, _ = opened_in(worker, offered_by(worker, in_place=False))
    worker.inbound.grant_pages(0.0)
    say(worker, whole(task))
    done: list[bool] = []
    task.copied = SimpleNamespace(done=lambda: bool(done))
    say(worker, commit_of(task, whole(task)))
    worker.take_over(worker.inbound.settle(2.0))
    assert task.phase is TaskPhase.KV and 0 < worker.idle_seconds() < 0.01
    done.append(True)
    worker.take_over(worker.inbound.settle(3.0))
    assert task.began[TaskPhase.ROWS] == 3.0 and not worker.inbound.commits


def test_a_request_that_ends_while_copies_run_is_not_verified(worker: DecodeWorker, heard: Heard) -> None:
    task, _ = opened_in(worker, offered_by(worker, in_place=False))
    worker.inbound.grant_pages(0.0)
    say(worker, whole(task))
    task.copied = SimpleNamespace(done=lambda: False)
    say(worker, commit_of(task, whole(task)))
    worker.desk.take(Cancel(task.id, "not wanted"), 2.0)
    assert not worker.inbound.settle(3.0)
    assert not worker.inbound.commits and isinstance(heard[-1], Nack) and not worker.cache.used


def test_pages_that_are_reused_before_the_commit_fail_the_attempt(worker: DecodeWorker, heard: Heard) -> None:
    """A worker that was stopped, and finds what it was told before its lease lapsed."""
    theirs = offered_by(worker, in_place=False)
    task, pages = opened_in(worker, theirs)
    worker.inbound.grant_pages(0.0)
    theirs.release(pages)
    say(worker, whole(task))
    say(worker, commit_of(task, whole(task)))
    assert isinstance(heard[-1], Nack) and "reused" in heard[-1].reason and not worker.tasks


def test_in_place_the_owner_waits_for_the_answer(worker: DecodeWorker, heard: Heard) -> None:
    theirs = offered_by(worker, in_place=True)
    task, pages = opened_in(worker, theirs)
    (grant,) = heard
    assert grant.way == "in place" and grant.reader == this_process()
    assert task.pages.tolist() == pages.tolist() and not worker.cache.used
    say(worker, commit_of(task))
    worker.expire(20.0)
    assert [type(message) for message in heard[1:]] == [Renew], "it goes on holding for us"
    assert worker.load().leases == 1 and worker.counters["kv_bytes_in_place"] == 10 * IDENTITY.token_bytes
    say(worker, Cancel(task.id, "the deadline passed"))
    assert task.id in ids(worker), "all KV is there: the search goes on"
    worker.start_searches(0.0)
    assert task.search is not None
    task.search.finish(np.zeros(1, np.float32), np.zeros(1, np.int32), False, -np.inf)
    worker.answer(task)
    assert isinstance(heard[-1], Ack) and not worker.tasks and worker.load().leases == 0


@pytest.mark.parametrize("when", ["granted", "committed"])
def test_in_place_a_cancelled_prompt_is_let_go(worker: DecodeWorker, heard: Heard, when: str) -> None:
    task, _ = opened_in(worker, offered_by(worker, in_place=True))
    if when == "committed":
        say(worker, commit_of(task))
    worker.desk.take(Cancel(task.id, "not wanted"), 2.0)
    assert isinstance(heard[-1], Ack if when == "committed" else Nack)


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "pull"])
def test_a_question_for_a_prompt_that_is_not_here_is_answered(
    worker: DecodeWorker, heard: Heard, in_place: bool
) -> None:
    """Our ACK may have been lost, and then nothing else would free the pages."""
    offered_by(worker, in_place)
    id = AttemptId(1, 8, 1, 3, worker.desk.incarnation)
    for question in (Commit(id, 0, 0, None, 0.0), Cancel(id, "it is over")):
        say(worker, question)
    assert heard == [Nack(id, "the prompt is not read here")] * 2 * in_place


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "pull"])
def test_pages_that_cannot_be_the_prompts_fail_the_attempt(
    worker: DecodeWorker, heard: Heard, in_place: bool
) -> None:
    theirs = offered_by(worker, in_place)
    theirs.allocate(3)
    id = AttemptId(1, 1, 1, 3, worker.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(request, 0.0)
    worker.inbound.open(worker.inbound.arriving[id], b"p", Open(id, 10, 0.0, b"", b""), 0.0)
    assert isinstance(heard[-1], Nack) and not worker.tasks and worker.counters["broken_transfers"] == 1


def test_when_the_owner_died_its_prompts_are_searched_to_the_end_and_no_others(
    worker: DecodeWorker, heard: Heard
) -> None:
    theirs = offered_by(worker, in_place=True)
    worker.clock = worker.inbound.clock = lambda: 5.0
    read, _ = opened_in(worker, theirs)
    say(worker, commit_of(read))
    waiting = opened(worker, 2)
    worker.inbound.memories._alive = lambda process: False
    worker.expire(5.0)
    assert waiting not in ids(worker) and ids(worker) == [read.id] and not worker.finished
    worker.desk.take(
        DecodeRequest(waiting, TOKENS, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0), 6.0
    )
    assert waiting not in ids(worker), "nothing new begins"
    worker.clock = lambda: 7.0
    worker.end(read)
    assert not worker.finished, "the answer is on its way: a process that ends now takes it along"
    worker.clock = lambda: 7.5
    assert worker.finished


# --- prompts that begin alike ---


def ended(worker: DecodeWorker, task: DecodeTask, invalid: bool = False) -> None:
    """Its search is over."""
    worker.start_searches(worker.clock())
    assert task.search is not None
    task.search.finish(np.zeros(1, np.float32), np.zeros(1, np.int32), invalid, -np.inf)
    worker.answer(task)


def handed_over(
    worker: DecodeWorker, number: int, tokens: int, hidden: float | None = 0.0, cached: int = 0
) -> DecodeTask:
    """A prompt of so many tokens, all of whose chunks are here, and its COMMIT."""
    id = AttemptId(1, number, 1, 3, worker.desk.incarnation)
    prompt = np.arange(tokens, dtype=np.int32).tobytes()
    request = DecodeRequest(id, prompt, 4, 2, "vocab", worker.catalogs.newest.version, None, b"", 60.0)
    worker.desk.take(request, 0.0)
    task = worker.inbound.arriving[id]
    worker.inbound.open(task, b"p", Open(id, tokens, 0.0), 0.0)
    worker.inbound.grant_pages(0.0)
    held = task.receiver._next_token[0]
    body = bytes((tokens - held) * IDENTITY.layer_token_bytes)  # of both layers' keys, or values
    chunk = KvChunk(id, 0, 0, 2, held, tokens - held, 0, 1, chunk_checksum(body, body))
    worker.inbound.answer(
        task, worker.inbound.chunks.write(task, chunk, [memoryview(body), memoryview(body)])
    )
    state = None if hidden is None else np.full(8, hidden, np.float32).tobytes()
    frames = [] if state is None else [memoryview(state)]
    checksum = None if state is None else chunk_checksum(state, b"")
    commit = Commit(id, 1, digest_of([chunk.checksum]), checksum, 0.1, cached)
    worker.inbound.take_commit(task, commit, frames, 1.0)
    worker.take_over(worker.inbound.settle(1.0))
    return task


@pytest.fixture
def pooled(worker: DecodeWorker, heard: Heard) -> DecodeWorker:
    """Four pages of sixteen tokens that are really there."""
    pool = KvPool(ModelIdentity("", "float32", 2, 1, 4, 8, 100, 1), 4, 16)
    worker.engine.pool, worker.inbound.chunks.copies = pool, Copies(pool)
    return worker


def grants(heard: Heard) -> list[int]:
    return [message.held_tokens for message in heard if isinstance(message, Grant)]


def test_of_a_prompt_that_was_here_only_the_rest_is_sent(pooled: DecodeWorker, heard: Heard) -> None:
    first = handed_over(pooled, 1, 20)
    second = handed_over(pooled, 2, 40)  # while the first is searched
    assert grants(heard) == [0, 16] and second.pages[0] == first.pages[0]
    ended(pooled, first)
    ended(pooled, second)
    assert pooled.load().pages_used == 0 and pooled.load().pages_cached == 2
    ended(pooled, handed_over(pooled, 3, 40))
    assert grants(heard) == [0, 16, 32] and pooled.counters["cached_tokens"] == 48


def test_nothing_is_shared_before_all_of_it_was_verified(pooled: DecodeWorker, heard: Heard) -> None:
    id = opened(pooled, 1)
    pooled.inbound.grant_pages(0.0)
    pooled.desk.take(Cancel(id, "not wanted"), 1.0)
    assert pooled.load().pages_cached == 0 and pooled.load().pages_used == 0


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), None], ids=str)
def test_kv_that_may_not_be_finite_is_shared_only_once_beams_have_read_it(
    pooled: DecodeWorker, heard: Heard, hidden: float | None
) -> None:
    task = handed_over(pooled, 1, 20, hidden)
    handed_over(pooled, 2, 20, hidden)
    assert grants(heard) == [0, 0]
    ended(pooled, task, invalid=True)
    assert pooled.load().pages_cached == 0 and pooled.counters["failed"] == 1
    ended(pooled, pooled.searching[AttemptId(1, 2, 1, 3, pooled.desk.incarnation)])
    assert pooled.load().pages_cached == 1


def test_the_result_tells_what_prefill_did_not_compute(
    pooled: DecodeWorker, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(pooled.desk.control, "send", lambda router, message: said.append(message))
    ended(pooled, handed_over(pooled, 1, 20, cached=12))
    assert said[-1].cached_tokens == 12


def test_a_flush_drops_what_no_request_holds(
    pooled: DecodeWorker, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(pooled.desk.control, "send", lambda router, message: said.append((router, message)))
    ended(pooled, handed_over(pooled, 1, 33))
    handed_over(pooled, 2, 20)
    pooled.desk.take(FlushCache(7, 4), 0.0)
    assert said[-1] == (7, CacheFlushed(4, 1)), "the other page is held"
    assert pooled.load().pages_used == 2 and pooled.load().pages_cached == 0


def test_a_worker_that_reads_in_place_caches_nothing(worker: DecodeWorker, heard: Heard) -> None:
    theirs = offered_by(worker, in_place=True)
    task, _ = opened_in(worker, theirs)
    say(worker, commit_of(task))
    ended(worker, task)
    assert heard[0].held_tokens == 0 and worker.load().pages_cached == 0


# --- what nobody had thought of, and what peers should not do ---


def broken(*_: Any, **__: Any) -> Any:
    raise KeyError("nobody had thought of this")


@pytest.fixture
def told(worker: DecodeWorker, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What routers are told."""
    said: list[Any] = []
    monkeypatch.setattr(worker.desk.control, "send", lambda router, message: said.append(message))
    return said


@pytest.mark.parametrize("where", ["before the task", "with the task"])
def test_a_request_that_cannot_be_handled_ends_alone(
    worker: DecodeWorker,
    told: list[Any],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = opened(worker, 2)
    with monkeypatch.context() as patched:
        if where == "before the task":
            patched.setattr(worker, "accept", broken)
        else:
            patched.setattr(worker.inbound, "expect", broken)
        searching_id = AttemptId(1, 1, 1, 3, worker.desk.incarnation)
        version = worker.catalogs.newest.version
        message = DecodeRequest(searching_id, TOKENS, 4, 2, "vocab", version, None, b"", 60.0)
        worker.desk.take(message, 0.0)
    (failed,) = told
    assert failed.id == searching_id and failed.code == "internal_error"
    assert "nobody had thought" in caplog.text and ids(worker) == [kept]


@pytest.mark.parametrize("what", ["Open", "KvChunk", "Commit"])
def test_a_message_of_prefill_that_cannot_be_handled_ends_its_hand_over_alone(
    pooled: DecodeWorker, heard: Heard, told: list[Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = AttemptId(1, 1, 1, 3, pooled.desk.incarnation)
    request = DecodeRequest(id, TOKENS, 4, 2, "vocab", pooled.catalogs.newest.version, None, b"", 60.0)
    pooled.desk.take(request, 0.0)
    other = AttemptId(1, 2, 1, 3, pooled.desk.incarnation)
    pooled.desk.take(msgspec.structs.replace(request, id=other), 0.0)
    receiver, step = (
        pooled.inbound.arriving[id].receiver,
        {"Open": "open", "KvChunk": "chunk", "Commit": "commit"}[what],
    )
    monkeypatch.setattr(receiver, step, broken)
    say(pooled, Open(id, 10, 0.0))
    pooled.inbound.grant_pages(0.0)
    if what == "KvChunk":
        say(pooled, KvChunk(id, 0, 0, 2, 0, 10, 0, 1, 1))
    elif what == "Commit":
        say(pooled, Commit(id, 0, digest_of([]), None, 0.1))
    assert ids(pooled) == [other] and pooled.load().pages_used == 0
    assert told[-1].id == id and told[-1].code == "worker_lost" and pooled.counters["broken_transfers"] == 1


def test_a_prompt_that_cannot_be_taken_over_ends_alone(
    pooled: DecodeWorker, heard: Heard, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = pooled.scheduler.keep
    monkeypatch.setattr(
        pooled.scheduler, "keep", lambda task: broken() if task.id.request == 1 else keep(task)
    )
    hurt = handed_over(pooled, 1, 20)
    kept = handed_over(pooled, 2, 20)
    assert ids(pooled) == [kept.id] and [task for task in pooled.scheduler.ready] == [kept]
    assert [message.id for message in told if isinstance(message, Failed)] == [hurt.id]


def test_a_lost_device_is_not_one_hand_overs_fault(pooled: DecodeWorker, heard: Heard) -> None:
    id = opened(pooled)
    pooled.inbound.grant_pages(0.0)

    def lose(*_: Any) -> None:
        raise DeviceLost("it fell off the bus")

    pooled.inbound.chunks.copies.write = lose  # type: ignore[method-assign, assignment]
    body = bytes(10 * IDENTITY.layer_token_bytes)
    chunk = KvChunk(id, 0, 0, 2, 0, 10, 0, 1, chunk_checksum(body, body))
    with pytest.raises(DeviceLost):
        pooled.inbound.handle(Received(b"p", chunk, [memoryview(body), memoryview(body)]), 1.0)


@pytest.mark.parametrize("count", [8, 9])
def test_more_chunks_at_once_than_credits_break_the_protocol(
    pooled: DecodeWorker, heard: Heard, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pooled.config.chunk_credits == 8
    id = opened(pooled)
    pooled.inbound.grant_pages(0.0)
    batch = []
    for sequence in range(count):
        keys = bytes(IDENTITY.layer_token_bytes // 2)
        chunk = KvChunk(id, sequence, 0, 1, sequence, 1, 0, 1, chunk_checksum(keys, keys))
        batch.append(Received(b"p", chunk, [memoryview(keys), memoryview(keys)]))
    monkeypatch.setattr(pooled.inbound.data, "receive", lambda: iter(batch))
    pooled.inbound.receive()
    assert (id in ids(pooled)) == (count == 8)
    nacks = [message for message in heard if isinstance(message, Nack)]
    assert len(nacks) == (count == 9) and all("9 chunks" in nack.reason for nack in nacks)


def test_opens_that_come_before_their_requests_are_bounded(worker: DecodeWorker, heard: Heard) -> None:
    def some(first: int, count: int) -> list[AttemptId]:
        return [AttemptId(1, first + n, 1, 3, worker.desk.incarnation) for n in range(count)]

    for id in some(0, 1024):
        worker.inbound.keep_early(EarlyOpen(b"p", Open(id, 10, 0.0), 1.0))
    assert len(worker.inbound.early_opens) == 1024 and not heard
    worker.inbound.keep_early(EarlyOpen(b"p", Open(some(1024, 1)[0], 10, 0.0), 1.0))
    assert len(worker.inbound.early_opens) == 1024 and isinstance(heard[-1], Nack)
    worker.expire(1000.0)
    pages = bytes(1 << 20)
    for id in some(0, 64):
        worker.inbound.keep_early(EarlyOpen(b"p", Open(id, 10, 0.0, pages, pages), 1000.0))
    assert len(worker.inbound.early_opens) == 32, "of 2 MiB each"


def test_the_next_run_of_a_router_ends_what_the_one_before_asked_for(worker: DecodeWorker) -> None:
    opened(worker, 1)
    for router in (1, 5):
        worker.desk.control._greet(Hello(PROTOCOL, router, "router-0"), b"peer", 0.0)
    worker.expire(0.0)
    assert not worker.tasks
