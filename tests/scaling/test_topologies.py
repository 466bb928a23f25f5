"""More workers change nothing but the speed: 2 + 2 answers as 1 + 1 does, in any order and company."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from freed import assert_all_freed
from sameness import assert_identical

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer, WorkerStatus


@pytest.fixture(scope="module")
def double(deploy: Callable[..., Deployment], single: list[Answer]) -> Iterator[XgrClient]:
    """A client of two prefill and two decode workers; at the end nothing may be held anywhere."""
    two_by_two = deploy(prefill_workers=2, decode_workers=2)
    with two_by_two as deployment, XgrClient(deployment.url, timeout=120) as client:
        yield client
        assert len(assert_all_freed(client)) == 4


def test_one_at_a_time(double: XgrClient, queries: list[Request], single: list[Answer]) -> None:
    for query, expected in zip(queries, single, strict=True):
        assert_identical(double.generate(**query), expected)


@pytest.mark.in_turns("order")
@pytest.mark.parametrize("order", range(3), ids="order={}".format)
def test_sixteen_at_a_time_in_any_order(
    double: XgrClient, queries: list[Request], single: list[Answer], order: int
) -> None:
    """Each order puts other requests into the same batches."""
    pairs = list(zip(queries, single, strict=True))
    random.Random(order).shuffle(pairs)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda pair: double.generate(**pair[0]), pairs))
    for answer, (_, expected) in zip(answers, pairs, strict=True):
        assert answer.meta_info.attempts == 1, "nothing failed on the way"
        assert_identical(answer, expected)


def test_the_same_request_sixteen_times_at_once(
    double: XgrClient, queries: list[Request], single: list[Answer]
) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: double.generate(**queries[4]), range(16)))
    for answer in answers:
        assert_identical(answer, single[4])


def test_work_spreads_over_all_workers(double: XgrClient, queries: list[Request]) -> None:
    before = counted(double)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda query: double.generate(**query), queries * 2))
    done = {name: after - before[name] for name, after in counted(double).items()}
    assert len(done) == 4
    total = 2 * len(queries)
    assert done["prefill-0"] + done["prefill-1"] == done["decode-0"] + done["decode-1"] == total
    # Pairing goes by load, and sixteen callers load all: half each, but for the chance of a few.
    assert min(done.values()) >= total // 5, done


def counted(client: XgrClient) -> dict[str, float]:
    """Requests done so far, by worker."""
    return {str(worker.worker): done_by(worker) for worker in assert_all_freed(client)}


def done_by(worker: WorkerStatus) -> float:
    assert worker.load is not None
    return worker.load.counters.get("prompts" if worker.role == "prefill" else "answered", 0.0)
