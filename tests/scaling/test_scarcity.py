"""Too little memory for everybody at once: requests wait for their turn, none fails, no answer changes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest
from freed import assert_all_freed
from sameness import assert_identical
from scarce import LONGEST, token_bytes

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.errors import DeadlineExceeded, Overloaded
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer


@pytest.fixture(scope="module")
def scarce(checkpoint: Path, deploy: Callable[..., Deployment], single: list[Answer]) -> Iterator[XgrClient]:
    """KV for one long prompt, rows for one wide beam, small pages, batches and chunks, one credit."""
    settings = {
        "kv_bytes": (LONGEST + 15) * token_bytes(checkpoint),
        "max_rows": 150,
        "max_beam_width": 150,
        "page_size": 4,
        "batch_tokens": LONGEST,
        "chunk_bytes": 4096,
        "chunk_credits": 1,
    }
    with deploy(**settings) as deployment, XgrClient(deployment.url, timeout=120) as client:
        yield client
        assert len(assert_all_freed(client)) == 2


def test_everybody_waits_and_is_answered(
    scarce: XgrClient, queries: list[Request], single: list[Answer]
) -> None:
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda query: scarce.generate(**query), queries))
    for answer, expected in zip(answers, single, strict=True):
        assert answer.meta_info.attempts == 1
        assert_identical(answer, expected)
    timings = [answer.meta_info.timing for answer in answers]
    assert max(t.queue for t in timings) > 3 * median(t.prefill for t in timings), "nobody waited"


def test_a_prompt_that_can_never_fit_is_refused(scarce: XgrClient) -> None:
    response = scarce.http.post("/generate", json={"input_ids": [1] * 4 * LONGEST})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input_ids"


def test_cancelled_while_waiting(scarce: XgrClient, queries: list[Request], single: list[Answer]) -> None:
    """Deadlines pass in every queue there is; whoever still has time is answered, and rightly."""
    hurried: list[Request] = [{**query, "timeout_ms": 5 + 15 * i} for i, query in enumerate(queries)]

    def ask(query: Request) -> Answer | None:
        try:
            return scarce.generate(**query)
        except (DeadlineExceeded, Overloaded):  # it was too late, or seen to be coming
            return None

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, hurried))
    assert None in answers, "the first deadline is too short for anybody"
    for answer, expected in zip(answers, single, strict=True):
        if answer is not None:
            assert_identical(answer, expected)
    assert_all_freed(scarce)
    assert_identical(scarce.generate(**queries[0]), single[0])
