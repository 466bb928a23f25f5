"""Chunks of prompt KV that are on their way while something happens to the worker that sent them."""

import json
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from sameness import assert_identical

from xgr_runtime.client import XgrClient
from xgr_runtime.errors import DeadlineExceeded, NoWorkers, WorkerLost
from xgr_runtime.wire.answers import Answer

CHUNK_BYTES = 8192  # and nothing is cached, so that every prompt takes many of them
WIDTH = 64


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> list[list[int]]:
    """Eight different prompts of 2,000 tokens, or as long as the model allows."""
    config = json.loads((checkpoint / "config.json").read_text())
    length = min(2000, config["max_position_embeddings"] - 8)
    return [[1 + (7 * n + i * i) % (config["vocab_size"] - 1) for i in range(length)] for n in range(8)]


def ask(client: XgrClient, prompt: list[int]) -> Answer:
    return client.generate(input_ids=prompt, beam_width=WIDTH, n=10, timeout_ms=30_000)


def ask_all(client: XgrClient, prompts: list[list[int]], pool: ThreadPoolExecutor) -> list[Future[Answer]]:
    return [pool.submit(ask, client, prompt) for prompt in prompts]


def assert_undisturbed(answers: list[Answer], undisturbed: list[Answer]) -> None:
    """Everybody got the answer that was there before the fault."""
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert_identical(answer, expected)


@pytest.mark.in_turns("victim")
@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_without_a_surviving_pair_the_answer_is_an_error_at_once(
    checkpoint: Path, catalog_source: Path, prompts: list[list[int]], victim: str
) -> None:
    settings: dict[str, Any] = {"proxies": True, "chunk_bytes": CHUNK_BYTES, "cache_bytes": 0}
    with (
        Cluster(checkpoint, catalog_source, 1, 1, **settings) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        proxy = cluster.proxies[0]
        proxy.hold_after(10)
        answer = pool.submit(ask, client, prompts[0])
        assert proxy.held.wait(30)
        killed = time.monotonic()
        cluster.kill(victim)
        with pytest.raises(WorkerLost) as lost:
            answer.result(30)
        assert lost.value.param == victim.split("-")[0], "the error names the stage"
        with pytest.raises(NoWorkers):
            ask(client, prompts[0])
        assert time.monotonic() - killed < 20, "nobody waits for the 30 s deadline"
        proxy.release()
        assert not client.ready()
        assert len(cluster.settled()) == 1


def test_a_stopped_prefill_worker_that_wakes_up_spoils_nothing(
    checkpoint: Path, catalog_source: Path, prompts: list[list[int]]
) -> None:
    with (
        Cluster(
            checkpoint,
            catalog_source,
            2,
            1,
            proxies=True,
            chunk_bytes=CHUNK_BYTES,
            cache_bytes=0,
            heartbeat=2.5,  # nobody counts as quiet, and is tried elsewhere, before the deadline;
            hedge_after=0.0,  # nor as slow
        ) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        undisturbed = [ask(client, prompt) for prompt in prompts]
        proxy = cluster.proxies[0]
        proxy.hold_after(10)
        late = pool.submit(client.generate, input_ids=prompts[1], beam_width=WIDTH, timeout_ms=6_000)
        assert proxy.held.wait(30) and proxy.held_chunk is not None
        victim = cluster.incarnations[proxy.held_chunk.id.prefill]
        cluster.signal(victim, signal.SIGSTOP)
        assert isinstance(late.exception(30), DeadlineExceeded)
        cluster.signal(victim, signal.SIGCONT)
        passed = proxy.chunks
        answers = ask_all(client, prompts, pool)
        until = time.monotonic() + 30
        while proxy.chunks == passed:  # the other worker fills the pages that the late chunks were meant for
            assert time.monotonic() < until
            time.sleep(0.001)
        proxy.release()
        assert_undisturbed([answer.result(60) for answer in answers], undisturbed)
        assert len(cluster.settled()) == 3
