"""The prefill worker's handling of what routers send, over real sockets and without a model."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefill_worker.worker import PrefillWorker
from xgr_runtime.config import PrefillConfig
from xgr_runtime.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Failed,
    Hello,
    ModelIdentity,
    PrefillRequest,
    ToRouter,
)
from xgr_runtime.pages import PagePool
from xgr_runtime.transport import Link, Poller

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[PrefillWorker]:
    tmp_path.chmod(0o700)
    config = PrefillConfig(model_path="m", control_address=f"ipc://{tmp_path}/c")
    engine: Any = SimpleNamespace()
    made = PrefillWorker(config, engine, PagePool(8), IDENTITY, max_prompt_tokens=32, clock=lambda: 10.0)
    yield made
    made.control.listener.close()


def request(
    worker: PrefillWorker, tokens: list[int], number: int = 1, address: str = "", timeout: float = 5.0
) -> PrefillRequest:
    id = AttemptId(1, number, 1, worker.incarnation, 2)
    address = address or worker.config.control_address + ".data"
    return PrefillRequest(id, address, np.array(tokens, np.int32).tobytes(), timeout)


def test_a_request_that_comes_twice_runs_once(worker: PrefillWorker) -> None:
    message = request(worker, [1, 2, 3])
    worker.handle_control(message, 10.0)
    worker.handle_control(message, 10.0)
    assert len(worker.scheduler.waiting) == 1
    ((prompt, pages),) = worker.scheduler.next_batch()
    worker.open(prompt, pages)
    worker.handle_control(message, 10.0)
    assert not worker.scheduler.waiting and worker.pool.used == 1


@pytest.mark.parametrize(
    ("tokens", "address"),
    [([], ""), ([1] * 33, ""), ([1, 100], ""), ([1, -1], ""), ([1], "tcp://10.0.0.1:5"), ([1], "nonsense")],
    ids=str,
)
def test_a_bad_request_is_refused_and_holds_nothing(
    worker: PrefillWorker, tokens: list[int], address: str
) -> None:
    worker.handle_control(request(worker, tokens, address=address), 10.0)
    assert not worker.scheduler.waiting and not worker.pool.used
    assert worker.counters["failed"] == 1


def test_a_request_for_another_incarnation_is_ignored(worker: PrefillWorker) -> None:
    message = PrefillRequest(AttemptId(1, 1, 1, worker.incarnation + 1, 2), "ipc:///x", b"\0\0\0\0", 5.0)
    worker.handle_control(message, 10.0)
    assert not worker.scheduler.waiting and worker.load().counters["stale_messages"] == 1


def test_cancel_frees_pages_at_the_next_retirement(worker: PrefillWorker) -> None:
    message = request(worker, [1] * 20)
    worker.handle_control(message, 10.0)
    ((prompt, pages),) = worker.scheduler.next_batch()
    worker.open(prompt, pages)
    worker.handle_control(Cancel(message.id, "no longer wanted"), 10.0)
    assert worker.pool.used == 2, "a forward may still write to these pages"
    worker.retire()
    assert not worker.pool.used and not worker.running


def test_a_forward_that_fails_ends_only_the_request_at_fault(worker: PrefillWorker) -> None:
    def run(prompts: list[Any], on_layer: Any) -> np.ndarray:
        on_layer(0)
        if any(tokens[0] == 66 for tokens, _ in prompts):
            raise RuntimeError("a prompt that cannot be run")
        on_layer(1)
        return np.zeros((len(prompts), 8), np.float32)

    worker.engine.run = run  # type: ignore[method-assign, assignment]
    for number, token in enumerate([1, 66, 2]):
        worker.handle_control(request(worker, [token] * 5, number), 10.0)
    worker.prefill([worker.open(prompt, pages) for prompt, pages in worker.scheduler.next_batch()])
    worker.retire()
    assert [id.request for id in worker.running] == [0, 2] and worker.pool.used == 2
    assert worker.counters["failed"] == 1 and worker.counters["prompts"] == 2


def test_after_a_batch_the_loop_looks_again_at_once(worker: PrefillWorker) -> None:
    assert worker.idle_seconds() > 0
    worker.worked = True  # an ACK that came during the forward may have freed pages
    assert worker.idle_seconds() == 0


def test_a_lapsed_lease_and_a_passed_deadline_free_everything(worker: PrefillWorker) -> None:
    for number in (1, 2):
        worker.handle_control(request(worker, [1] * 20, number), 10.0)
    first = worker.scheduler.waiting.popleft()
    pages = worker.pool.allocate(2)
    assert pages is not None
    worker.open(first, pages)
    worker.expire(15.0)  # both deadlines are 5 s after arrival
    worker.retire()
    assert not worker.scheduler.waiting and not worker.running and not worker.pool.used


def test_a_silent_router_hears_of_each_of_its_requests_once(worker: PrefillWorker) -> None:
    router: Link[Any] = Link(worker.config.control_address, ToRouter)
    poller = Poller()
    poller.add(router)
    while not router.send(Hello(PROTOCOL, 1)):
        pass
    while not worker.control.send(1, Failed(request(worker, [1], 9).id, "prefill", "c", "m", retry=False)):
        list(worker.control.receive(10.0))
    for number in (1, 2):
        worker.handle_control(request(worker, [1] * 5, number, timeout=60.0), 10.0)
    first = worker.scheduler.waiting.popleft()
    pages = worker.pool.allocate(1)
    assert pages is not None
    worker.open(first, pages)
    worker.expire(10.1 + worker.config.silence)
    worker.retire()
    assert not worker.running and not worker.scheduler.waiting and not worker.pool.used
    heard: list[int] = []
    while len(heard) < 3:
        poller.wait(5)
        received = router.receive()
        assert received is not None
        if isinstance(received.message, Failed):
            heard.append(received.message.id.request)
    assert sorted(heard) == [1, 2, 9] and worker.counters["failed"] == 2
    router.close()
