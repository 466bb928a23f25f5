"""Router, prefill and decode worker on hosts of their own, with keys, and a network between them that is bad.

Each is in a network namespace; what the network does to packets is said in `tests/support/carrier.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from carrier import Conditions
from hosts import Hosts, hosts_missing
from items import Items
from keyed_cluster import NAMES, HostsCluster
from network_spaces import enter
from oracle import Oracle, Ranked
from sameness import assert_same
from until import until

from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import Answer, WorkerStatus

WIDTH, CALLERS = 16, 6
PATIENT = 60.0  # seconds: nobody counts as lost, whatever the network and a busy machine do together
FINE = Conditions()
BAD = {
    "delay": Conditions(delay=0.005),
    "loss": Conditions(loss=0.01),
    "reordering": Conditions(reordering=0.05),
    "rate": Conditions(rate=100e6),
    "all": Conditions(delay=0.005, loss=0.01, reordering=0.05, rate=100e6),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if missing := hosts_missing():
        pytest.skip(missing)
    with Hosts([*NAMES, "router-1"]) as made:
        yield made


@pytest.fixture(scope="module")
def apart(hosts: Hosts, checkpoint: Path, catalog_source: Path) -> Iterator[HostsCluster]:
    """A pair and its router; templates have begun before anybody goes into a namespace."""
    cluster = HostsCluster(hosts, checkpoint, catalog_source, silence=PATIENT, hedge_after=0.0)
    with hosts.inside("router"):
        cluster.__enter__()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]], items: Items, oracle: Oracle) -> list[tuple[list[int], Ranked]]:
    return [(prompt, oracle.hugging_face(prompt, items, WIDTH)) for prompt in prompts[::2]]


Expected = list[tuple[list[int], Ranked]]


class Callers:
    """Threads on a router's host that ask it."""

    def __init__(self, cluster: HostsCluster, host: str = "router", url: str = "") -> None:
        self.client = XgrClient(url or cluster.url, timeout=120.0)
        go_there = partial(enter, cluster.hosts.space(host))  # each thread for its whole life
        self.threads = ThreadPoolExecutor(CALLERS, initializer=go_there)

    def ask(self, expected: Expected) -> list[Future[Answer]]:
        return [
            self.threads.submit(
                partial(self.client.generate, input_ids=prompt, beam_width=WIDTH, timeout_ms=100_000)
            )
            for prompt, _ in expected
        ]

    def close(self) -> None:
        self.threads.shutdown()
        self.client.close()


@contextmanager
def callers(cluster: HostsCluster, host: str = "router", url: str = "") -> Iterator[Callers]:
    made = Callers(cluster, host, url)
    try:
        yield made
    finally:
        made.close()


def check(answers: list[Future[Answer]], expected: Expected) -> None:
    for asked, (_, ranked) in zip(answers, expected, strict=True):
        answer = asked.result()
        assert_same(answer, ranked)
        assert answer.meta_info.attempts == 1, "nothing was lost on the way"


def settled(cluster: HostsCluster) -> list[WorkerStatus]:
    """Nothing is held, and no byte of KV took another way than the network."""
    with cluster.hosts.inside("router"):
        found = cluster.settled()
    for worker in found:
        assert worker.load is not None
        assert not worker.load.counters["bad_messages"]
        assert not worker.load.counters.get("kv_bytes_pulled", 0.0)
    return found


def sent(cluster: HostsCluster) -> float:
    """Bytes of KV that came to the decode worker over the network; caches are emptied."""
    counters = [worker.load.counters for worker in settled(cluster) if worker.load]
    with cluster.hosts.inside("router"), cluster.client() as client:
        client.flush_cache()
    return sum(each.get("kv_bytes_as_frames", 0.0) for each in counters)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_network_changes_no_answer(apart: HostsCluster, expected: Expected, kind: str) -> None:
    before = sent(apart)
    apart.hosts.conditions(BAD[kind])
    with callers(apart) as there:
        check(there.ask(expected), expected)
    apart.hosts.conditions(FINE)
    assert sent(apart) - before > 0, "KV went over the network"


def test_a_link_that_is_gone_for_a_while_loses_nothing(apart: HostsCluster, expected: Expected) -> None:
    sent(apart)
    apart.hosts.conditions(Conditions(rate=1e6))  # so slow that requests are under way when it goes
    with callers(apart) as there:
        answers = there.ask(expected)
        until(lambda: any(answer.done() for answer in answers), "the first answer", every=0.001)
        apart.hosts.conditions(Conditions(gone=True))
        under_way = [answer for answer in answers if not answer.done()]
        time.sleep(3.0)
        apart.hosts.conditions(FINE)
        assert under_way, "the link went before the last answer"
        check(answers, expected)
    settled(apart)


def test_two_routers_share_the_workers(apart: HostsCluster, expected: Expected) -> None:
    url = apart.start_router("router-1")
    with callers(apart) as there, callers(apart, "router-1", url) as beside:
        apart.hosts.conditions(BAD["delay"])
        until(beside.threads.submit(beside.client.ready).result, "the second router has met the workers")
        for one, other in zip(there.ask(expected), beside.ask(expected), strict=True):
            assert one.result().meta_info.attempts == other.result().meta_info.attempts == 1
        check(there.ask(expected), expected)
        check(beside.ask(expected), expected)
        apart.hosts.conditions(FINE)
    settled(apart)
