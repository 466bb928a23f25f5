"""Workers join and leave a deployment that is under load, by file and by route: every request is answered."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cluster import Cluster
from sameness import assert_identical
from until import until

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.files import write_whole
from xgr_runtime.wire.answers import Answer

CALLERS = 6
DONE = {"prefill": "prompts", "decode": "answered"}  # counters of requests that a worker was through with


@pytest.fixture
def some(queries: list[Request]) -> list[Request]:
    return [{**query, "timeout_ms": 120_000} for query in queries[:8]]


def test_no_request_is_lost_and_who_is_there_works(
    checkpoint: Path, catalog_source: Path, tmp_path: Path, some: list[Request]
) -> None:
    file = tmp_path / "workers.json"
    settings: dict[str, Any] = {"hedge_after": 0.0, "heartbeat": 0.1, "workers_file": str(file)}
    made = Cluster(checkpoint, catalog_source, 1, 1, **settings)
    first = [f"ipc://{made.folder / name}" for name in ("prefill-0", "decode-0")]
    name_in(file, *first)
    with made as cluster, cluster.client() as client:
        expected = [client.generate(**query) for query in some]
        prefill, decode = cluster.beside("prefill-1", "decode-1")
        with load(cluster, some, expected):
            name_in(file, *first, prefill, decode)
            works(client, "prefill-1", "decode-1")
            name_in(file, *first)
            left(client, "prefill-0", "decode-0")

            client.add_worker(prefill, "prefill")
            client.add_worker(decode, "decode")
            works(client, "prefill-1", "decode-1")
            for name in ("decode-0", "prefill-0"):
                assert client.remove_worker(name).leaving
            left(client, "prefill-1", "decode-1")
            works(client, "prefill-1", "decode-1")
        assert len(cluster.settled()) == 2


def name_in(file: Path, *addresses: str) -> None:
    """Prefill and decode workers in turn."""
    write_whole(file, msgspec.json.encode({"prefill": addresses[::2], "decode": addresses[1::2]}))


def done(client: XgrClient) -> dict[str, float]:
    """By worker."""
    known = [worker for worker in client.workers() if worker.worker and worker.load]
    return {w.worker or "": w.load.counters.get(DONE[w.role], 0.0) for w in known if w.load}


def works(client: XgrClient, *names: str) -> None:
    """Wait until each of them has done more than when it was first seen."""
    first = until(
        lambda: found if (found := done(client)).keys() >= set(names) else None, f"{names} are there"
    )
    assert first is not None
    until(lambda: all(done(client)[name] > first[name] for name in names), f"{names} work")


def left(client: XgrClient, *names: str) -> None:
    """Wait until only these are there."""
    until(lambda: {worker.worker for worker in client.workers()} == set(names), f"only {names}")


@contextmanager
def load(cluster: Cluster, queries: list[Request], expected: list[Answer]) -> Iterator[None]:
    """Callers who ask one request after the other; each answer is the expected one, at the first try."""
    over = threading.Event()

    def call(start: int) -> int:
        with cluster.client() as client:
            for number in itertools.count(start):
                if over.is_set():
                    return number - start
                answer = client.generate(**queries[number % len(queries)])
                assert_identical(answer, expected[number % len(queries)])
                assert answer.meta_info.attempts == 1, "nobody was cut off"
        raise AssertionError

    with ThreadPoolExecutor(CALLERS) as threads:
        callers = [threads.submit(call, number) for number in range(CALLERS)]
        try:
            yield
        finally:
            over.set()
        assert all(caller.result() > 0 for caller in callers)
