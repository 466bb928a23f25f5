"""Users who come back: the same answers as without any cache, and only what is new is computed and sent."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from freed import assert_all_freed
from sameness import assert_identical
from ways import PAGE, WAYS, Served

from xgr_runtime.client import XgrClient
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer

WIDTH = 32


@pytest.fixture(scope="session")
def vocabulary(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="session")
def token_bytes(checkpoint: Path) -> int:
    """Keys and values of one token in float32."""
    config = json.loads((checkpoint / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * 4 * int(config["num_hidden_layers"] * config["num_key_value_heads"] * head)


@pytest.fixture(scope="session")
def sessions(vocabulary: int) -> list[list[int]]:
    """Prompts in the order of their arrival: they grow, repeat, diverge inside of a page, and shrink."""
    draw = random.Random(5)

    def fresh(count: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(count)]

    prompts: list[list[int]] = []
    for _ in range(4):
        history = fresh(draw.randrange(60, 200))
        prompts += [history, history, history + fresh(4), history + fresh(31)]
        prompts += [history[: PAGE * 5 + 3] + fresh(40), history[: PAGE * 4], history[: PAGE * 4 + 1]]
    return [prompts[i] for n in range(4) for i in range(n, len(prompts), 4)]


@pytest.fixture(scope="session")
def expected(deployment: Deployment, sessions: list[list[int]]) -> list[Answer]:
    """The answers where nothing is cached. Kept for the session, for modules take turns at `served`."""
    answers = []
    with XgrClient(deployment.url) as client:
        for prompt in sessions:
            assert_all_freed(client)
            client.flush_cache()
            answers.append(ask(client, prompt))
    assert not any(answer.meta_info.cached_tokens for answer in answers)
    return answers


def ask(client: XgrClient, prompt: list[int]) -> Answer:
    return client.generate(input_ids=prompt, beam_width=WIDTH, n=10, timeout_ms=120_000)


def counters(client: XgrClient, role: str) -> dict[str, float]:
    """Of all workers of a role, added up."""
    found: dict[str, float] = {}
    for worker in assert_all_freed(client):
        if worker.role == role and worker.load:
            for name, value in worker.load.counters.items():
                found[name] = found.get(name, 0.0) + value
    return found


@pytest.mark.in_turns("served")
def test_answers_are_those_of_a_deployment_without_caches(
    served: Served, sessions: list[list[int]], expected: list[Answer], token_bytes: int
) -> None:
    with served.cluster.client() as client, ThreadPoolExecutor(8) as pool:
        assert_all_freed(client)
        client.flush_cache()
        before = counters(client, "prefill"), counters(client, "decode")
        seen: list[list[int]] = []
        for prompt, other in zip(sessions, expected, strict=True):
            answer = ask(client, prompt)
            assert_identical(answer, other)
            assert answer.meta_info.cached_tokens == longest_known(prompt, seen)
            seen.append(prompt)
        # All of them again, at a time.
        for answer, other in zip(pool.map(lambda p: ask(client, p), sessions), expected, strict=True):
            assert_identical(answer, other)
        after = counters(client, "prefill"), counters(client, "decode")
    prefill, decode = (risen(*pair) for pair in zip(before, after, strict=True))
    assert prefill["cached_tokens"] + prefill["prompt_tokens"] == 2 * sum(map(len, sessions))
    if served.way == "in-place":
        assert not decode.get("cached_tokens")
    else:
        sent = 2 * sum(map(len, sessions)) - decode["cached_tokens"]
        assert decode["kv_bytes"] == sent * token_bytes
        assert decode["cached_tokens"] > sum(map(len, sessions)) / 2


def risen(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """By how much each counter has gone up."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def longest_known(prompt: list[int], seen: list[list[int]]) -> int:
    """Tokens in whole pages with which an earlier prompt began as well, but never all."""
    most = 0
    for other in seen:
        alike = next((i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b), None)
        common = min(len(prompt), len(other)) if alike is None else alike
        most = max(most, min(common, len(prompt) - 1) // PAGE * PAGE)
    return most


@pytest.mark.in_turns("way")
@pytest.mark.parametrize(
    ("way", "tier"),
    [("frames", 0), ("pull", 64 << 20), ("in-place", 64 << 20)],
)
def test_pools_for_two_prompts_serve_everybody_in_turn(
    way: str,
    tier: int,
    checkpoint: Path,
    catalog_source: Path,
    sessions: list[list[int]],
    expected: list[Answer],
    token_bytes: int,
) -> None:
    """Every prompt pushes another out; some find a part of theirs, in the tier behind the pool or here."""
    kv_bytes = 2 * max(map(len, sessions)) * token_bytes
    tiny: dict[str, Any] = {"page_size": PAGE, "kv_bytes": kv_bytes, "host_cache_bytes": tier}
    with (
        Cluster(checkpoint, catalog_source, **WAYS[way], **tiny) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in range(2):
            answers = pool.map(lambda prompt: ask(client, prompt), sessions)
            for answer, other in zip(answers, expected, strict=True):
                assert_identical(answer, other)
        cluster.settled()
        prefill = counters(client, "prefill")
        assert prefill["evicted_pages"] > 0 and prefill["cached_tokens"] > 0
        assert bool(prefill["restored_pages"]) == bool(tier)
        if way != "in-place":
            assert counters(client, "decode")["evicted_pages"] > 0


@pytest.fixture(scope="module")
def cached(checkpoint: Path, catalog_source: Path) -> Iterator[Cluster]:
    with Cluster(checkpoint, catalog_source, 1, 1, page_size=PAGE) as cluster:
        yield cluster


def test_a_user_with_a_few_new_items_costs_a_few_items_work(
    cached: Cluster, vocabulary: int, token_bytes: int
) -> None:
    history = [1 + (5 * i * i + i) % (vocabulary - 1) for i in range(400)]
    with cached.client() as client:
        before = counters(client, "prefill"), counters(client, "decode")
        visits = [ask(client, history[: 300 + 4 * n]) for n in range(20)]
        after = counters(client, "prefill"), counters(client, "decode")
    computed = risen(before[0], after[0])["prompt_tokens"]
    sent = risen(before[1], after[1])["kv_bytes"]
    most = 300 + 19 * (4 + PAGE)  # what is new, and what of the last page has to be computed again
    assert computed <= most and sent <= most * token_bytes
    assert all(answer.meta_info.cached_tokens >= 300 - PAGE for answer in visits[1:])
    cold = visits[0].meta_info
    assert cold.cached_tokens == 0 and cold.prompt_tokens == 300


def test_a_flush_empties_every_worker(
    cached: Cluster, sessions: list[list[int]], expected: list[Answer]
) -> None:
    with cached.client() as client:
        for prompt, other in zip(sessions[:6], expected, strict=False):
            assert_identical(ask(client, prompt), other)
        kept = [worker.load.pages_cached for worker in assert_all_freed(client) if worker.load]
        assert len(kept) == 2 and all(kept)
        flushed = client.flush_cache()
        assert flushed.success and flushed.flushed_pages == sum(kept)
        assert sorted(worker.flushed_pages for worker in flushed.workers) == sorted(kept)
        assert not any(worker.load.pages_cached for worker in assert_all_freed(client) if worker.load)
        answer = ask(client, sessions[0])
        assert_identical(answer, expected[0])
        assert answer.meta_info.cached_tokens == 0
        assert client.flush_cache().flushed_pages > 0


@pytest.mark.in_turns("victim")
@pytest.mark.parametrize(("victim", "way"), [("prefill-0", "in-place"), ("decode-0", "pull")])
def test_a_worker_that_was_killed_leaves_nothing_and_begins_with_an_empty_cache(
    victim: str,
    way: str,
    checkpoint: Path,
    catalog_source: Path,
    sessions: list[list[int]],
    expected: list[Answer],
) -> None:
    with Cluster(checkpoint, catalog_source, **WAYS[way], page_size=PAGE) as cluster:
        with cluster.client() as client, ThreadPoolExecutor(8) as pool:
            for answer, other in zip(pool.map(lambda p: ask(client, p), sessions), expected, strict=True):
                assert_identical(answer, other)
            futures = [pool.submit(ask, client, prompt) for prompt in sessions]
            time.sleep(0.05)
            cluster.kill(victim)
            for future, other in zip(futures, expected, strict=True):
                if future.exception(60) is None:  # there is no other pair: some fail, none hangs or is wrong
                    assert_identical(future.result(), other)
            assert len(cluster.settled()) <= 1
            flush = client.flush_cache()
            dead = flush.workers[victim == "decode-0"]
            assert victim in dead.address and dead.problem and not flush.success
        if way == "in-place" and victim == "prefill-0":
            cluster.restart("prefill-0")
            cluster.restart("decode-0")
        else:
            cluster.restart(victim)
        with cluster.client() as client:
            while not client.ready():
                time.sleep(0.05)
            for prompt, other in zip(sessions, expected, strict=True):
                assert_identical(ask(client, prompt), other)
            cluster.settled()
