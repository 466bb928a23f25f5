"""Prompts far beyond the token budget of a forward: the same answers as in one piece, and no leftovers."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from freed import assert_all_freed
from sameness import assert_identical
from shared_templates import deployment_of

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import Cancelled, DeadlineExceeded, NotFound, Overloaded
from xgr_runtime.wire.answers import Answer

BUDGET = 48  # tokens per forward
LONG = 1_900  # tokens: forty forwards


@pytest.fixture(scope="module")
def chunked(checkpoint: Path, catalog_source: Path) -> Iterator[XgrClient]:
    """A client of one prefill worker with a small budget and one decode worker."""
    config = ServeConfig(
        model_path=str(checkpoint),
        catalog=str(catalog_source),
        port=0,
        kv_bytes=256 << 20,
        batch_tokens=BUDGET,
        chunk_bytes=4096,
        log_level="WARNING",
    )
    with deployment_of(config) as running, XgrClient(running.url, timeout=120.0) as client:
        yield client
        assert_all_freed(client)


@pytest.fixture(scope="module")
def long_prompt(checkpoint: Path) -> list[int]:
    config = json.loads((checkpoint / "config.json").read_text())
    length = min(LONG, config["max_position_embeddings"] - 8)
    return [1 + (11 * i + i * i) % (config["vocab_size"] - 1) for i in range(length)]


@pytest.fixture(scope="module")
def queries(histories: list[dict[str, Any]], long_prompt: list[int]) -> list[Request]:
    """Real histories from shorter than the budget to several times as long, and four very long prompts."""
    by_length = sorted(histories, key=lambda row: len(row["history"]))
    users = [[str(item) for item in row["history"]] for row in by_length[:: len(by_length) // 20]]
    short: list[Request] = [{"history": history, "beam_width": 40} for history in users]
    long: list[Request] = [{"input_ids": long_prompt[: 400 * n], "beam_width": 20} for n in range(1, 5)]
    return [*short, *long]


@pytest.fixture(scope="module")
def expected(client: XgrClient, queries: list[Request]) -> list[Answer]:
    """The answers of a deployment whose budget holds each prompt whole."""
    return [client.generate(**query) for query in queries]


def test_sixteen_at_a_time_answer_as_in_one_piece(
    chunked: XgrClient, queries: list[Request], expected: list[Answer]
) -> None:
    lengths = [answer.meta_info.prompt_tokens for answer in expected]
    assert min(lengths) < BUDGET < max(lengths) / 8
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda query: chunked.generate(**query), queries))
    for answer, other in zip(answers, expected, strict=True):
        assert answer.meta_info.attempts == 1
        assert_identical(answer, other)


def test_each_token_is_computed_once(chunked: XgrClient, long_prompt: list[int]) -> None:
    chunked.flush_cache()
    before = tokens_computed(chunked)
    chunked.generate(input_ids=long_prompt, beam_width=4)
    assert tokens_computed(chunked) - before == len(long_prompt)


@pytest.mark.in_turns("how")
@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_what_is_cancelled_between_chunks_leaves_nothing_behind(
    chunked: XgrClient, long_prompt: list[int], queries: list[Request], expected: list[Answer], how: str
) -> None:
    """Eight long prompts: the first is ended while its chunks run, most while they wait behind it."""
    chunked.flush_cache()
    alone = chunked.generate(input_ids=long_prompt, beam_width=4).meta_info.e2e_latency
    timeout_ms = 30_000 if how == "abort" else 1 + int(500 * alone)
    # No two begin alike, or the first would leave its tokens to the others.
    prompts = {f"{how}-{n}": [2 + n + 10 * (how == "abort"), *long_prompt[1:]] for n in range(8)}
    before = tokens_computed(chunked)
    with ThreadPoolExecutor(8) as threads:
        asked = {
            rid: threads.submit(
                chunked.generate, input_ids=prompt, beam_width=4, rid=rid, timeout_ms=timeout_ms
            )
            for rid, prompt in prompts.items()
        }
        if how == "abort":
            sleep(alone / 4)
            for rid, future in asked.items():
                abort(chunked, rid, future)
        errors = [future.exception(60) for future in asked.values()]
    # Those behind the first may be refused before they wait, as more than the pair can do in time.
    ends = (Cancelled,) if how == "abort" else (DeadlineExceeded, Overloaded)
    ended = [e for e in errors if isinstance(e, ends)]
    assert len(ended) >= 4 and all(e is None or e in ended for e in errors), errors
    assert_all_freed(chunked)
    computed = tokens_computed(chunked) - before - errors.count(None) * len(long_prompt)
    assert 0 < computed < len(ended) * len(long_prompt), "somebody was ended between two chunks"
    for query, other in islice(zip(queries, expected, strict=True), 0, None, 5):
        assert_identical(chunked.generate(**query), other)


def abort(client: XgrClient, rid: str, future: Future[Answer]) -> None:
    """Abort a request as soon as the router knows it, unless it is over."""
    while not future.done():
        with suppress(NotFound):
            client.abort(rid)
            return
        sleep(0.01)


def tokens_computed(client: XgrClient) -> float:
    """Prompt tokens that the prefill worker has run so far."""
    (worker,) = [worker for worker in assert_all_freed(client) if worker.role == "prefill"]
    assert worker.load is not None
    return worker.load.counters.get("prompt_tokens", 0.0)
