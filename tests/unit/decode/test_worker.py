"""The decode worker's loop over real sockets, with an engine that only pretends to compute."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from decode_worker.worker import DecodeWorker
from xgr_runtime.catalog import build_from_arrays
from xgr_runtime.config import DecodeConfig
from xgr_runtime.messages import (
    PROTOCOL,
    AttemptId,
    Hello,
    Limits,
    ModelIdentity,
    Open,
    ToRouter,
    WorkerHello,
)
from xgr_runtime.transport import Link, Poller

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


class SlowEngine:
    """Two layers per step, and something to do between them."""

    def __init__(self, between: Callable[[], None]) -> None:
        self.pool = SimpleNamespace(pages=4)
        self.between = between

    def step(self, searches: list[Any], on_layer: Callable[[int], None]) -> SimpleNamespace:
        for layer in range(2):
            self.between()
            on_layer(layer)
        none = np.zeros(0, np.int64)
        return SimpleNamespace(score=none, rows_skipped=none, elements_visited=none, elements_total=none)


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
    engine: Any = SlowEngine(lambda: None)
    made = DecodeWorker(config, engine, catalog, IDENTITY, Limits(64, 8))
    yield made
    made.control.listener.close()
    made.data.listener.close()


def test_heartbeats_are_answered_between_the_layers_of_a_step(worker: DecodeWorker) -> None:
    router: Link[Any] = Link(worker.config.control_address, ToRouter)
    incoming, outgoing = Poller(), Poller()
    incoming.add(router)
    outgoing.add(worker.control.listener)
    answers: list[Any] = []

    def beat() -> None:
        while not router.send(Hello(PROTOCOL, 7)):
            pass
        outgoing.wait(5)

    worker.engine.between = beat  # type: ignore[attr-defined]
    worker.step()
    while len(answers) < 2:
        incoming.wait(5)
        received = router.receive()
        assert received is not None, "no answer during the step"
        answers.append(received.message)
    assert all(isinstance(answer, WorkerHello) for answer in answers)
    assert answers[0].incarnation == worker.incarnation
    router.close()


def test_an_open_whose_request_never_comes_is_forgotten(worker: DecodeWorker) -> None:
    id = AttemptId(1, 2, 1, 3, worker.incarnation)
    worker.keep_early(b"peer", Open(id, 10, 0.0), now=100.0)
    worker.expire(100.0 + worker.config.lease)
    assert id in worker.early_opens
    worker.expire(100.1 + worker.config.lease)
    assert not worker.early_opens
