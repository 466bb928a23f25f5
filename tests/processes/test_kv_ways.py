"""Prompt KV that is read in the prefill worker's memory: the same answers, whoever dies or stops."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from freed import assert_all_freed
from items import Items
from kv_proxy import KvProxy
from oracle import Oracle
from references import Reference, check_all
from sameness import assert_identical
from shared_templates import deployment_of
from until import until
from ways import Served

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import NoWorkers, RequestError, WorkerLost
from xgr_runtime.wire.answers import Answer

WIDTH = 64
LEASE = 3.0  # seconds: a busy machine may hold a worker up for one
BY_LAYER = 4096  # chunk bytes: small layers would be told together, and a proxy holds between two chunks
MOVED = {"frames": "kv_bytes_as_frames", "pull": "kv_bytes_pulled", "in-place": "kv_bytes_in_place"}


@pytest.fixture(scope="module")
def long_prompts(checkpoint: Path) -> list[list[int]]:
    """Eight different prompts of 1,000 tokens, or as long as the model allows."""
    config = json.loads((checkpoint / "config.json").read_text())
    length = min(1000, config["max_position_embeddings"] - 8)
    return [[1 + (7 * n + i * i) % (config["vocab_size"] - 1) for i in range(length)] for n in range(8)]


def ask(client: XgrClient, prompt: list[int], width: int = WIDTH) -> Answer:
    return client.generate(input_ids=prompt, beam_width=width, n=10, timeout_ms=60_000)


def load_of(cluster: Cluster, name: str) -> Any:
    with cluster.client() as client:
        return next(worker.load for worker in client.workers() if worker.worker == name)


def mapped(cluster: Cluster, name: str, what: str = "") -> set[str]:
    """The shared memory that a worker has mapped, its own and others', by inode."""
    lines = Path(f"/proc/{cluster.pid(name)}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if f"/memfd:xgr {what}" in line}


def descriptors(cluster: Cluster, name: str) -> int:
    return len(list(Path(f"/proc/{cluster.pid(name)}/fd").iterdir()))


@pytest.mark.in_turns("served")
def test_answers_are_those_of_the_reference(
    served: Served, references: list[Reference], oracle: Oracle, items: Items
) -> None:
    some = references[:: max(1, len(references) // 20)]
    with served.cluster.client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda r: client.generate(input_ids=r.prompt, beam_width=r.width), some))
    served.cluster.settled()
    check_all(answers, some, oracle, items)
    counters = load_of(served.cluster, "decode-0").counters
    came = next(name for way, name in MOVED.items() if served.way.startswith(way))
    assert {name for name in counters if name in MOVED.values()} == {came}


@pytest.fixture(scope="module")
def undisturbed(client: XgrClient, long_prompts: list[list[int]]) -> list[Answer]:
    """The answers to the long prompts where nothing happens."""
    return [ask(client, prompt) for prompt in long_prompts]


def ask_until_held(
    cluster: Cluster, client: XgrClient, pool: ThreadPoolExecutor, prompts: list[list[int]]
) -> tuple[str, list[Future[Answer]]]:
    """All prompts, asked at once, while the second chunk of one waits; the decode worker that it is for."""
    for proxy in cluster.proxies:
        proxy.hold_after(1)
    answers = [pool.submit(ask, client, prompt) for prompt in prompts]
    held = until(
        lambda: [n for n, proxy in enumerate(cluster.proxies) if proxy.held.is_set()], "a chunk is held", 30
    )
    for number, proxy in enumerate(cluster.proxies):
        if number != held[0]:
            proxy.release()
    return f"decode-{held[0]}", answers


def proxy_of(cluster: Cluster, decode: str) -> KvProxy:
    return cluster.proxies[int(decode.removeprefix("decode-"))]


def assert_all_identical(answers: list[Future[Answer]], undisturbed: list[Answer]) -> None:
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert_identical(answer.result(60), expected)


@pytest.mark.in_turns("role")
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_killed_while_kv_is_pulled(
    role: str,
    checkpoint: Path,
    catalog_source: Path,
    long_prompts: list[list[int]],
    undisturbed: list[Answer],
) -> None:
    with (
        Cluster(
            checkpoint,
            catalog_source,
            2,
            2,
            proxies=True,
            kv_transfer="auto",
            chunk_bytes=BY_LAYER,
            cache_bytes=0,
        ) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        warm = [pool.submit(ask, client, prompt) for prompt in long_prompts]
        assert_all_identical(warm, undisturbed)
        before = {name: descriptors(cluster, name) for name in cluster.children}
        decode, answers = ask_until_held(cluster, client, pool, long_prompts)
        proxy = proxy_of(cluster, decode)
        assert proxy.held_chunk is not None
        victim = decode if role == "decode" else cluster.incarnations[proxy.held_chunk.id.prefill]
        others = [name for name in cluster.children if name not in (victim, "router")]
        memory = mapped(cluster, victim)
        assert any(memory & mapped(cluster, name) for name in others), "the memory of one is another's, too"
        cluster.kill(victim)
        proxy.release()
        assert_all_identical(answers, undisturbed)
        assert len(cluster.settled()) == 3
        if role == "prefill":
            until(
                lambda: not any(memory & mapped(cluster, name) for name in others), "its memory is let go", 30
            )
        for name in others:  # a link to each of two others may be new
            assert descriptors(cluster, name) <= before[name] + 4, f"{name} holds what it needs no more"


@pytest.mark.in_turns("cache_bytes")
@pytest.mark.parametrize("cache_bytes", [0, -1], ids="cache={}".format)
def test_a_stopped_reader_that_wakes_up_late_takes_nothing_foreign(
    checkpoint: Path,
    catalog_source: Path,
    long_prompts: list[list[int]],
    undisturbed: list[Answer],
    cache_bytes: int,
) -> None:
    """It finds what it was told before its lease lapsed, and by then other prompts lie in those pages."""
    with (
        Cluster(
            checkpoint,
            catalog_source,
            1,
            2,
            proxies=True,
            kv_transfer="auto",
            chunk_bytes=BY_LAYER,
            lease=LEASE,
            kv_bytes=8 << 20,
            cache_bytes=cache_bytes,
        ) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        stopped, answers = ask_until_held(cluster, client, pool, long_prompts)
        cluster.signal(stopped, signal.SIGSTOP)
        proxy_of(cluster, stopped).release()
        until(lambda: load_of(cluster, "prefill-0").counters.get("failed"), "a lease lapsed", 30)
        again = [pool.submit(ask, client, prompt) for prompt in long_prompts]  # into the pages that came free
        time.sleep(LEASE)
        cluster.signal(stopped, signal.SIGCONT)
        assert_all_identical(answers, undisturbed)
        assert_all_identical(again, undisturbed)
        assert max(answer.result().meta_info.attempts for answer in answers) > 1, "somebody was retried"
        cluster.settled()
        assert load_of(cluster, "prefill-0").counters["outlived_leases"] == 0


@pytest.fixture(scope="module")
def colocated(checkpoint: Path, catalog_source: Path) -> Iterator[Cluster]:
    """One worker of each kind that share memory, with a proxy on their link; decode hangs on command.

    Tests that kill one of them start it again.
    """
    with Cluster(
        checkpoint,
        catalog_source,
        1,
        1,
        proxies=True,
        kv_transfer="auto",
        colocated=True,
        lease=LEASE,
        faulty=["decode-0"],
    ) as cluster:
        yield cluster


def stop_at_commit(cluster: Cluster) -> threading.Event:
    """Stop the decode worker just before the next COMMIT reaches it."""
    stopped = threading.Event()

    def stop(_: object) -> None:
        if not stopped.is_set():
            cluster.signal("decode-0", signal.SIGSTOP)
            stopped.set()

    cluster.proxies[-1].on_commit = stop
    return stopped


def test_weights_lie_in_memory_once(
    colocated: Cluster, long_prompts: list[list[int]], undisturbed: list[Answer]
) -> None:
    owner, reader = (mapped(colocated, name, "weights") for name in ("prefill-0", "decode-0"))
    assert len(owner) == 1 and owner == reader
    with colocated.client() as client:
        assert_identical(ask(client, long_prompts[0]), undisturbed[0])


def test_a_stopped_reader_in_place_holds_its_pages_beyond_its_lease(
    colocated: Cluster, long_prompts: list[list[int]], undisturbed: list[Answer]
) -> None:
    with colocated.client() as client, ThreadPoolExecutor(8) as pool:
        assert_identical(ask(client, long_prompts[0]), undisturbed[0])
        stopped = stop_at_commit(colocated)
        answers = [pool.submit(ask, client, prompt) for prompt in long_prompts]
        assert stopped.wait(30)
        # No longer than that: each further lease costs the requests that wait one of their attempts.
        until(lambda: load_of(colocated, "prefill-0").counters["outlived_leases"], "a lease has lapsed", 30)
        assert load_of(colocated, "prefill-0").pages_used > 0
        colocated.signal("decode-0", signal.SIGCONT)
        assert_all_identical(answers, undisturbed)
        colocated.settled()


def test_a_dead_reader_in_place_frees_its_pages(
    colocated: Cluster, long_prompts: list[list[int]], undisturbed: list[Answer]
) -> None:
    with colocated.client() as client, ThreadPoolExecutor(8) as pool:
        before = descriptors(colocated, "prefill-0")
        stopped = stop_at_commit(colocated)
        answers = [pool.submit(ask, client, prompt) for prompt in long_prompts]
        assert stopped.wait(30)
        colocated.kill("decode-0")
        for answer in answers:
            assert isinstance(answer.exception(30), WorkerLost | NoWorkers)
        assert len(colocated.settled()) == 1
        colocated.restart("decode-0")
        until(client.ready, "the pair is back", 30)
        assert_identical(ask(client, long_prompts[1]), undisturbed[1])
        colocated.settled()
        assert descriptors(colocated, "prefill-0") <= before + 2, "a link more, no more"


def test_beams_end_well_when_the_owner_of_their_prompt_dies(
    colocated: Cluster, long_prompts: list[list[int]], undisturbed: list[Answer]
) -> None:
    with colocated.client() as client, ThreadPoolExecutor(1) as pool:
        hangs = colocated.arm("decode-0", "beams")
        answer = pool.submit(ask, client, long_prompts[0])
        until(hangs.exists, "beams are under way")
        until(lambda: not colocated.in_flight("prefill-0"), "the router knows that KV has arrived")
        colocated.kill("prefill-0")
        hangs.unlink()
        assert_identical(answer.result(30), undisturbed[0])
        decode = colocated.children["decode-0"]
        until(lambda: decode.poll() is not None, "it ends as well", 30)
        assert decode.poll() == 0 and any("start again" in line for line in decode.last_lines)
        for name in ("prefill-0", "decode-0"):
            colocated.restart(name)
        until(client.ready, "the pair is back", 30)
        assert_identical(ask(client, long_prompts[1]), undisturbed[1])
        colocated.settled()


def test_a_restarted_owner_takes_its_reader_along(
    checkpoint: Path, catalog_source: Path, long_prompts: list[list[int]], undisturbed: list[Answer]
) -> None:
    """The launcher starts both again, and says what happened."""
    config = ServeConfig(
        model_path=str(checkpoint),
        catalog=str(catalog_source),
        port=0,
        kv_bytes=64 << 20,
        layout="colocated",
        log_level="ERROR",
    )
    with deployment_of(config) as deployment, XgrClient(deployment.url) as client:
        assert_identical(ask(client, long_prompts[0]), undisturbed[0])
        first = {name: deployment.pid(name) for name in ("prefill-0", "decode-0")}
        assert first["prefill-0"] is not None
        os.kill(first["prefill-0"], signal.SIGKILL)
        until(
            lambda: all(deployment.pid(n) not in (None, pid) for n, pid in first.items()), "both are new", 60
        )
        until(lambda: answered(client, long_prompts[1], undisturbed[1]), "an answer", 60)
        assert_all_freed(client)


def answered(client: XgrClient, prompt: list[int], expected: Answer) -> bool:
    """Whether there is an answer yet; it must be the right one."""
    try:
        assert_identical(ask(client, prompt), expected)
    except RequestError:
        return False
    return True
