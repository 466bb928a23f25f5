"""The prefill worker's handling of what routers send, over real sockets and without a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefill_worker.engines.base import Part
from prefill_worker.worker import PrefillWorker
from xgr_runtime.config import PrefillConfig
from xgr_runtime.handover import decode_links
from xgr_runtime.handover.transfer import Transfer
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.model.device.device import DeviceLost
from xgr_runtime.transport import Link, Poller
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    CacheFlushed,
    Cancel,
    Failed,
    FlushCache,
    Hello,
    ModelIdentity,
    PrefillRequest,
    TakeRole,
    ToRouter,
)
from xgr_runtime.worker.device_turns import PATIENCE

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
NAN = 77  # a token from which the played model makes NaN


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[PrefillWorker]:
    tmp_path.chmod(0o700)
    config = PrefillConfig(model_path="m", control_address=f"ipc://{tmp_path}/c", batch_tokens=12)
    engine: Any = SimpleNamespace(max_prompts=None, pool=None, prepares=False)
    made = PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=32, clock=lambda: 10.0)
    yield made
    made.desk.control.listener.close()


def request(
    worker: PrefillWorker, tokens: list[int], number: int = 1, address: str = "", timeout: float = 5.0
) -> PrefillRequest:
    id = AttemptId(1, number, 1, worker.desk.incarnation, 2)
    address = address or worker.config.control_address + ".data"
    return PrefillRequest(id, address, np.array(tokens, np.int32).tobytes(), timeout)


def test_a_request_that_comes_twice_runs_once(worker: PrefillWorker) -> None:
    message = request(worker, [1, 2, 3])
    worker.desk.take(message, 10.0)
    worker.desk.take(message, 10.0)
    assert len(worker.scheduler.waiting) == 1
    (turn,) = worker.scheduler.next_turns(worker.clock())
    worker.open(turn.prompt)
    worker.desk.take(message, 10.0)
    assert not worker.scheduler.waiting and worker.cache.used == 1


@pytest.mark.parametrize(
    ("tokens", "address"),
    [([], ""), ([1] * 33, ""), ([1, 100], ""), ([1, -1], ""), ([1], "tcp://10.0.0.1:5"), ([1], "nonsense")],
    ids=str,
)
def test_a_bad_request_is_refused_and_holds_nothing(
    worker: PrefillWorker, tokens: list[int], address: str
) -> None:
    worker.desk.take(request(worker, tokens, address=address), 10.0)
    assert not worker.scheduler.waiting and not worker.cache.used
    assert worker.counters["failed"] == 1


def test_a_request_for_another_incarnation_is_ignored(worker: PrefillWorker) -> None:
    message = PrefillRequest(AttemptId(1, 1, 1, worker.desk.incarnation + 1, 2), "ipc:///x", b"\0\0\0\0", 5.0)
    worker.desk.take(message, 10.0)
    assert not worker.scheduler.waiting and worker.load().counters["stale_messages"] == 1


def test_cancel_frees_pages_at_the_next_retirement(worker: PrefillWorker) -> None:
    message = request(worker, [1] * 20)
    worker.desk.take(message, 10.0)
    (turn,) = worker.scheduler.next_turns(worker.clock())
    worker.open(turn.prompt)
    worker.desk.take(Cancel(message.id, "no longer wanted"), 10.0)
    assert worker.cache.used == 2, "a forward may still write to these pages"
    worker.retire()
    assert not worker.cache.used and not worker.prompts


def play(worker: PrefillWorker, run: Callable[[list[Part], Callable[[int], None]], None]) -> list[list[int]]:
    """Let `run` stand in for the model; the numbers of tokens of each forward that it did not refuse."""
    forwards: list[list[int]] = []

    def both_layers(
        parts: list[Part], on_layer: Callable[[int], None], meanwhile: Callable[[], None]
    ) -> np.ndarray:
        on_layer(0)
        run(parts, on_layer)
        if worker.engine.prepares:
            meanwhile()
        on_layer(1)
        forwards.append([len(part.tokens) for part in parts])
        return np.array([[np.nan if NAN in part.tokens else 0.0] * 8 for part in parts], np.float32)

    worker.engine.run = both_layers  # type: ignore[method-assign, assignment]
    return forwards


def one_turn(worker: PrefillWorker) -> None:
    """What the loop does once, but for messages."""
    worker.expire(worker.clock())
    worker.retire()
    turns = worker.scheduler.next_turns(worker.clock())
    worker.prefill(worker.opened(turns))


def refuse(token: int) -> Callable[[list[Part], Callable[[int], None]], None]:
    def run(parts: list[Part], on_layer: Callable[[int], None]) -> None:
        if any(token in part.tokens for part in parts):
            raise RuntimeError("tokens that cannot be run")

    return run


def test_a_forward_that_fails_ends_only_the_request_at_fault(worker: PrefillWorker) -> None:
    play(worker, refuse(66))
    for number, token in enumerate([1, 66, 2]):
        worker.desk.take(request(worker, [token] * 4, number), 10.0)
    one_turn(worker)
    worker.retire()
    assert [id.request for id in worker.prompts] == [0, 2] and worker.cache.used == 2
    assert worker.counters["failed"] == 1 and worker.counters["prompts"] == 2


def test_a_long_prompt_runs_in_turns_and_streams_each(worker: PrefillWorker) -> None:
    forwards = play(worker, lambda parts, on_layer: None)
    worker.desk.take(request(worker, [1] * 30), 10.0)
    worker.desk.take(request(worker, [2] * 5, 2), 10.0)
    senders = []
    for _ in range(3):
        one_turn(worker)
        (transfer, *_) = worker.outbound.transfers.values()
        senders.append(list(transfer.sender._ready))
    assert forwards == [[12], [12], [6, 5]] and senders == [[12, 12], [24, 24], [30, 30]]
    assert worker.counters["prompts"] == 2 and worker.counters["prompt_tokens"] == 35
    assert all(t.hidden == bytes(32) for t in worker.outbound.transfers.values())
    assert not worker.scheduler.next_turns(worker.clock()) and worker.cache.used == 3


def test_a_turn_that_fails_ends_its_prompt_and_no_other(worker: PrefillWorker) -> None:
    forwards = play(worker, refuse(66))
    worker.desk.take(request(worker, [1] * 20 + [66] * 10), 10.0)
    worker.desk.take(request(worker, [2] * 11, 2), 10.0)
    for _ in range(3):
        one_turn(worker)
    assert forwards == [[12], [11]], "the second turn of the first prompt failed"
    assert [id.request for id in worker.prompts] == [2] and worker.cache.used == 1
    assert worker.counters["failed"] == 1


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_what_ends_between_two_turns_is_not_computed_further(worker: PrefillWorker, end: str) -> None:
    forwards = play(worker, lambda parts, on_layer: None)
    message = request(worker, [1] * 30)
    worker.desk.take(message, 10.0)
    one_turn(worker)
    assert worker.cache.used == 2
    if end == "cancel":
        worker.desk.take(Cancel(message.id, "no longer wanted"), 10.0)
    else:
        worker.clock = lambda: 15.0
    one_turn(worker)
    assert forwards == [[12]] and not worker.cache.used and not worker.prompts and not worker.scheduler.begun


def test_a_cancel_during_a_turn_frees_the_pages_after_it(worker: PrefillWorker) -> None:
    message = request(worker, [1] * 30)
    held = []

    def run(parts: list[Part], on_layer: Callable[[int], None]) -> None:
        worker.desk.take(Cancel(message.id, "no longer wanted"), 10.0)
        held.append(worker.cache.used)

    forwards = play(worker, run)
    worker.desk.take(message, 10.0)
    one_turn(worker)
    one_turn(worker)
    assert held == [2] and forwards == [[12]] and not worker.cache.used and not worker.scheduler.begun


def test_a_shared_gpu_is_asked_for_while_prompts_wait_and_forgotten_when_none_does(
    worker: PrefillWorker,
) -> None:
    said: list[str] = []
    turns: Any = SimpleNamespace(try_take=lambda: False, forget=lambda: said.append("forget"))
    worker.device_turns = turns
    assert not worker.next_turns() and said == ["forget"]
    worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    assert not worker.next_turns() and worker.idle_seconds() < PATIENCE, "or until it is woken"
    turns.try_take = lambda: True
    assert worker.next_turns() and worker.idle_seconds() > PATIENCE


def test_prompts_that_wait_for_pages_leave_a_shared_gpu_to_the_one_who_frees_them(
    worker: PrefillWorker,
) -> None:
    said: list[str] = []
    worker.device_turns = SimpleNamespace(try_take=lambda: True, forget=lambda: said.append("forget"))
    held = worker.pool.allocate(worker.pool.free)  # by prompts that are read in place
    assert held is not None
    worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    assert not worker.next_turns() and said == ["forget"] and worker.idle_seconds() > 0.001
    worker.pool.release(held)
    assert worker.next_turns()


# --- what is planned ahead ---


def planning(worker: PrefillWorker) -> list[list[int]]:
    """Let the engine prepare; the first tokens of the parts of each batch that it is told to prepare."""
    prepared: list[list[int]] = []
    worker.engine.prepares = True

    def prepare(parts: list[Part]) -> None:
        prepared.append([int(part.tokens[0]) for part in parts])

    worker.engine.prepare = prepare  # type: ignore[method-assign, assignment]
    return prepared


def test_a_forward_is_prepared_before_the_device_is_ours(worker: PrefillWorker) -> None:
    prepared, forwards, order = planning(worker), play(worker, lambda parts, on_layer: None), list[str]()
    turns: Any = SimpleNamespace(
        want=lambda: order.append("want"), try_take=lambda: order.append("take"), give=lambda: None
    )
    worker.device_turns = turns
    worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    assert not worker.next_turns() and prepared == [[1]]
    worker.desk.take(request(worker, [4, 5], 2), 10.0)
    assert not worker.next_turns() and prepared == [[1], [1, 4]], "another one came while it waits"
    assert not worker.next_turns() and prepared == [[1], [1, 4]], "nothing has changed"
    turns.try_take = lambda: True
    worker.prefill(worker.next_turns())
    assert prepared == [[1], [1, 4]] and forwards == [[3, 2]] and order == ["want", "take"] * 3 + ["want"]


def test_the_next_forward_is_prepared_while_one_runs(worker: PrefillWorker) -> None:
    prepared = planning(worker)
    late = [request(worker, [4] * 5, 2), request(worker, [7] * 6, 3)]
    ran: list[list[Part]] = []

    def run(parts: list[Part], on_layer: Callable[[int], None]) -> None:
        ran.append(parts)
        if late:
            worker.desk.take(late.pop(0), 10.0)

    play(worker, run)
    worker.desk.take(request(worker, [1] * 20), 10.0)
    kept: list[list[Part]] = []
    for _ in range(3):
        worker.prefill(worker.next_turns())
        kept.append(worker.ahead.parts)
    assert prepared == [[1], [1], [4, 7]], "before the first forward, and in the first two"
    assert ran[1] is kept[0] and ran[2] is kept[1], "what was planned is what runs"
    assert worker.counters["prompts"] == 3 and not worker.scheduler.begun and worker.counters["failed"] == 0


def test_a_prompt_waits_for_a_beginning_that_a_forward_computes(worker: PrefillWorker) -> None:
    prepared = planning(worker)
    alike = [request(worker, [*range(16), 50, 51], 2)]

    def run(parts: list[Part], on_layer: Callable[[int], None]) -> None:
        if alike and parts[0].start:
            worker.desk.take(alike.pop(), 10.0)

    play(worker, run)
    worker.desk.take(request(worker, [*range(20)]), 10.0)
    for _ in range(3):
        worker.prefill(worker.next_turns())
    assert prepared == [[0], [12], [50]], "it was not begun while its first page was being computed"
    assert worker.counters["cached_tokens"] == 16


def test_what_is_cancelled_after_it_was_planned_does_not_run(worker: PrefillWorker) -> None:
    prepared = planning(worker)
    message = request(worker, [4] * 5, 2)

    def run(parts: list[Part], on_layer: Callable[[int], None]) -> None:
        worker.desk.take(message, 10.0)

    forwards = play(worker, run)
    worker.desk.take(request(worker, [1] * 12), 10.0)
    worker.prefill(worker.next_turns())
    worker.desk.take(Cancel(message.id, "no longer wanted"), 10.0)
    worker.retire()
    assert prepared == [[1], [4]] and not worker.next_turns() and forwards == [[12]]
    assert worker.cache.used == 1, "that of the first prompt, whose KV nobody has taken"


def test_a_forward_that_cannot_be_planned_fails_when_it_runs(worker: PrefillWorker) -> None:
    planning(worker)
    worker.engine.prepare = broken  # type: ignore[method-assign]
    play(worker, refuse(66))
    for number, token in enumerate([1, 66]):
        worker.desk.take(request(worker, [token] * 4, number), 10.0)
    worker.prefill(worker.next_turns())
    worker.retire()
    assert worker.counters["failed"] == 1 and worker.counters["prompts"] == 1


def test_after_a_batch_the_loop_looks_again_at_once(worker: PrefillWorker) -> None:
    assert worker.idle_seconds() > 0
    worker.worked = True  # an ACK that came during the forward may have freed pages
    assert worker.idle_seconds() == 0


def test_a_lapsed_lease_and_a_passed_deadline_free_everything(worker: PrefillWorker) -> None:
    for number in (1, 2):
        worker.desk.take(request(worker, [1] * 20, number), 10.0)
    (turn,) = worker.scheduler.next_turns(
        worker.clock()
    )  # the first prompt fills it; the other goes on waiting
    worker.open(turn.prompt)
    worker.expire(15.0)  # both deadlines are 5 s after arrival
    worker.retire()
    assert not worker.scheduler.waiting and not worker.prompts and not worker.cache.used


def test_a_silent_router_hears_of_each_of_its_requests_once(worker: PrefillWorker) -> None:
    router: Link[Any] = Link(worker.config.control_address, ToRouter)
    poller = Poller()
    poller.add(router)
    while not router.send(Hello(PROTOCOL, 1, "router-0")):
        pass
    while not worker.desk.control.send(1, Failed(request(worker, [1], 9).id, "prefill", "c", "m")):
        list(worker.desk.control.receive(10.0))
    for number in (1, 2):
        worker.desk.take(request(worker, [1] * 20, number, timeout=60.0), 10.0)
    (turn,) = worker.scheduler.next_turns(
        worker.clock()
    )  # the first prompt fills it; the other goes on waiting
    worker.open(turn.prompt)
    worker.expire(10.1 + worker.config.silence)
    worker.retire()
    assert not worker.prompts and not worker.scheduler.waiting and not worker.cache.used
    heard: list[int] = []
    while len(heard) < 3:
        poller.wait(5)
        received = router.receive()
        assert received is not None
        if isinstance(received.message, Failed):
            heard.append(received.message.id.request)
    assert sorted(heard) == [1, 2, 9] and worker.counters["failed"] == 2
    router.close()


# --- prompts that begin alike ---


def asked(worker: PrefillWorker, tokens: list[int], number: int, end: bool = True) -> Any:
    """A prompt that has run to its end, and whose hand-over is over."""
    message = request(worker, tokens, number)
    worker.desk.take(message, 10.0)
    while worker.scheduler.runnable(worker.clock()):
        one_turn(worker)
    transfer = worker.outbound.transfers[message.id]
    if end:
        transfer.fail("the decode worker has it")
        worker.retire()
    return transfer.sender


def test_a_beginning_that_is_cached_is_offered_at_once_and_not_computed(worker: PrefillWorker) -> None:
    forwards = play(worker, lambda parts, on_layer: None)
    asked(worker, [*range(20)], 1)
    assert worker.load().pages_cached == 1 and worker.load().pages_used == 0
    message = request(worker, [*range(30)], 2)
    worker.desk.take(message, 10.0)
    (turn,) = worker.scheduler.next_turns(worker.clock())
    worker.open(turn.prompt)
    sender = worker.outbound.transfers[message.id].sender
    assert turn.start == 16 and sender._ready == [16, 16]
    worker.prefill([turn])
    one_turn(worker)
    assert forwards == [[12], [8], [12], [2]] and sender._ready == [30, 30] and sender._cached_tokens == 16
    assert worker.counters["prompt_tokens"] == 34 and worker.counters["cached_tokens"] == 16


def test_kv_of_a_forward_that_was_not_finite_is_never_shared(worker: PrefillWorker) -> None:
    play(worker, lambda parts, on_layer: None)
    asked(worker, [NAN] * 20, 1)
    assert worker.load().pages_cached == 0
    sender = asked(worker, [NAN] * 20, 2)
    assert sender._cached_tokens == 0


def test_kv_of_a_forward_that_failed_is_never_shared(worker: PrefillWorker) -> None:
    play(worker, refuse(66))
    tokens = [1] * 16 + [66] * 8  # the first page is whole after the second forward, which fails
    worker.desk.take(request(worker, tokens, 1), 10.0)
    one_turn(worker)
    one_turn(worker)
    worker.retire()
    assert worker.load().pages_cached == worker.load().pages_used == 0
    worker.desk.take(request(worker, [1] * 20, 2), 10.0)
    (turn,) = worker.scheduler.next_turns(worker.clock())
    assert turn.start == 0


def test_a_prompt_that_is_cancelled_between_its_turns_leaves_what_it_computed(worker: PrefillWorker) -> None:
    play(worker, lambda parts, on_layer: None)
    message = request(worker, [1] * 30)
    worker.desk.take(message, 10.0)
    one_turn(worker)
    one_turn(worker)
    worker.desk.take(Cancel(message.id, "no longer wanted"), 10.0)
    worker.retire()
    assert worker.load().pages_used == 0 and worker.load().pages_cached == 1


def test_a_flush_drops_what_no_request_holds_and_says_how_much(worker: PrefillWorker) -> None:
    play(worker, lambda parts, on_layer: None)
    asked(worker, [1] * 20, 1)
    asked(worker, [2] * 20, 2, end=False)
    said: list[Any] = []
    worker.desk.control.send = lambda router, message: said.append((router, message))  # type: ignore[method-assign, assignment, func-returns-value, return-value]
    worker.desk.take(FlushCache(7, 3), 10.0)
    assert said == [(7, CacheFlushed(3, 1))] and worker.load().pages_cached == 0
    assert worker.load().pages_used == 2 and worker.load().counters["evicted_pages"] == 1


def test_nothing_is_kept_where_no_bytes_are_given_to_the_cache(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for cache_bytes, pages in ((0, 0), (16 * IDENTITY.token_bytes, 1), (-1, 2)):
        config = PrefillConfig(
            model_path="m", control_address=f"ipc://{tmp_path}/c", batch_tokens=40, cache_bytes=cache_bytes
        )
        engine: Any = SimpleNamespace(max_prompts=None, pool=None, prepares=False)
        made = PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=40, clock=lambda: 10.0)
        play(made, lambda parts, on_layer: None)
        asked(made, [1] * 40, 1)
        assert made.load().pages_cached == pages
        made.desk.control.listener.close()


def test_only_one_that_can_is_told_to_change_and_readers_of_its_pages_notice_its_end(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    config = PrefillConfig(model_path="m", control_address=f"ipc://{tmp_path}/c", batch_tokens=12)
    engine: Any = SimpleNamespace(max_prompts=None, pool=None, prepares=False)
    made = PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=32, clock=lambda: 10.0)
    me = made.desk.incarnation
    made.desk.take(TakeRole(7, me, "decode"), 10.0)
    assert made.introduce().change == "no", "it has one role"
    made.desk.flexible = True
    for other in (TakeRole(7, me + 1, "decode"), TakeRole(7, me, "prefill")):
        made.desk.take(other, 10.0)
        assert made.introduce().change == "can", "meant for another run, or what it is"
    made.desk.take(TakeRole(7, me, "decode"), 10.0)
    assert made.introduce().change == "under way" and made.desk.wanted == "decode"
    before = made.pool.generations.copy()
    made.close()
    assert (made.pool.generations != before).all()
    PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=32, clock=lambda: 10.0).close()


# --- what nobody had thought of ---


def spoil(worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What routers are told."""
    said: list[Any] = []
    monkeypatch.setattr(worker.desk.control, "send", lambda router, message: said.append(message))
    return said


def broken(*_: Any, **__: Any) -> Any:
    raise KeyError("nobody had thought of this")


def test_a_message_that_cannot_be_handled_ends_its_request_alone(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = spoil(worker, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(worker.scheduler, "add", broken)
        worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    worker.desk.take(request(worker, [1, 2, 3], 2), 10.0)
    (failed,) = said
    assert failed.id.request == 1 and failed.code == "internal_error"
    assert "nobody had thought" not in failed.message and "nobody had thought" in caplog.text
    assert [prompt.id.request for prompt in worker.scheduler.waiting] == [2]


def test_a_lost_device_is_not_one_messages_fault(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(prompt: Any) -> None:
        raise DeviceLost("it fell off the bus")

    monkeypatch.setattr(worker.scheduler, "add", lose)
    with pytest.raises(DeviceLost):
        worker.desk.take(request(worker, [1, 2, 3]), 10.0)


@pytest.mark.parametrize("where", ["outbound.open", "timeline.add", "a layer"])
def test_a_prompt_that_cannot_be_opened_holds_nothing(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    said = spoil(worker, monkeypatch)
    play(worker, lambda parts, on_layer: None)
    worker.desk.take(request(worker, [1] * 4), 10.0)
    with monkeypatch.context() as patched:
        if where == "outbound.open":
            patched.setattr(worker.outbound, "open", broken)
        elif where == "timeline.add":
            patched.setattr(worker.timeline, "add", broken)
        else:
            patched.setattr(Transfer, "layer_ready", broken)
        assert len(worker.opened(worker.scheduler.next_turns(10.0))) == (where == "a layer")
    one_turn(worker)
    assert not worker.prompts and not worker.cache.used and not worker.outbound.transfers
    assert not worker.scheduler.begun and not worker.outbound.credits_out
    (failed,) = said
    assert failed.code == "internal_error"
    worker.desk.take(request(worker, [1] * 4, 2), 10.0)
    one_turn(worker)
    assert worker.counters["prompts"] == 1, "and the next one runs"


def test_a_decode_worker_for_whom_there_is_no_socket_is_tried_elsewhere(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = spoil(worker, monkeypatch)
    monkeypatch.setattr(decode_links, "MOST_LINKS", 0)
    worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    assert said[0].code == "overloaded" and not worker.scheduler.waiting


def test_a_request_whose_decode_worker_has_a_refused_address_is_tried_elsewhere(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = spoil(worker, monkeypatch)
    worker.desk.take(request(worker, [1, 2, 3], address="tcp://10.0.0.1:5"), 10.0)
    assert said[0].code == "worker_lost" and not worker.scheduler.waiting


def test_a_link_that_is_gone_when_a_prompt_opens_and_cannot_be_had_again(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = spoil(worker, monkeypatch)
    worker.desk.take(request(worker, [1, 2, 3]), 10.0)
    worker.outbound._links._links.clear()  # it was idle for too long
    monkeypatch.setattr(decode_links, "MOST_LINKS", 0)
    assert not worker.opened(worker.scheduler.next_turns(10.0))
    assert said[0].code == "overloaded" and not caplog.text
    assert not worker.prompts and not worker.cache.used and not worker.scheduler.begun


def test_the_next_run_of_a_router_ends_what_the_one_before_asked_for(
    worker: PrefillWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        worker.desk.take(request(worker, [1] * 12, number, timeout=60.0), 10.0)
    worker.opened(worker.scheduler.next_turns(10.0))
    for router in (1, 5):
        worker.desk.control._greet(Hello(PROTOCOL, router, "router-0"), b"peer", 10.0)
    worker.expire(10.0)
    assert not worker.prompts and not worker.scheduler.waiting and not worker.cache.used
