"""Batch work beside online work: it makes room, is tried again, and no answer of either is another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from freed import assert_all_freed
from sameness import assert_identical
from scarce import LONGEST, token_bytes
from until import until

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer

MOST = 40  # rounds of online requests until batch work was in their way


@pytest.mark.parametrize("layout", ["split", "colocated"])
def test_batch_work_makes_room_and_ends_well(
    layout: str,
    checkpoint: Path,
    deploy: Callable[..., Deployment],
    queries: list[Request],
    single: list[Answer],
) -> None:
    """There are pages and rows for one long prompt at a time: whoever comes finds them taken."""
    settings = {
        "kv_bytes": (LONGEST + 15) * token_bytes(checkpoint),
        "max_rows": 150,
        "max_beam_width": 150,
        "page_size": 4,
        "layout": layout,
    }
    batch: list[Request] = [{**query, "priority_class": "batch", "timeout_ms": 120_000} for query in queries]
    with deploy(**settings) as deployment, XgrClient(deployment.url, timeout=150) as client:
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(client.generate, **query) for query in batch]
            for number in range(MOST):
                at = number % len(queries)
                assert_identical(client.generate(**queries[at]), single[at])
                if preempted(client):
                    break
        for answer, expected in zip(answers, single, strict=True):
            assert_identical(answer.result(), expected)
        assert preempted(client), f"batch work was never in the way of {MOST} requests"
        assert len(assert_all_freed(client)) == 2


def preempted(client: XgrClient) -> float:
    loads = [worker.load for worker in client.workers(fresh=True)]
    return sum(load.counters.get("preempted", 0.0) for load in loads if load)


def test_a_killed_xgr_generate_goes_on_where_it_ended(
    deployment: Deployment, queries: list[Request], single: list[Answer], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies = [body_of(query) for query in queries]
    source.write_text("".join(json.dumps(body) + "\n" for body in bodies * 3))
    command = [sys.executable, "-m", "xgr_runtime.cli", "generate", str(source), "--out", str(out)]
    command += ["--url", deployment.url, "--in-flight", "4"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        partial = tmp_path / "out.jsonl.partial"
        until(lambda: partial.exists() and partial.stat().st_size > 4096, "some answers are kept", every=0.01)
        first.send_signal(signal.SIGKILL)
    assert not out.exists(), "it was killed in the middle"
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == os.EX_OK
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 3 * len(queries) + 1))
    for row, expected in zip(rows, single * 3, strict=True):
        assert row["items"] == [item for result in expected.meta_info.beam_results for item in result.items]


def body_of(query: Request) -> dict[str, object]:
    """As /generate takes it."""
    body: dict[str, object] = {"history": query["history"]}
    body["sampling_params"] = {"beam_width": query["beam_width"], "score_mode": query["score_mode"]}
    body["filters"] = {"exclude_history": query["exclude_history"], "deny": query["deny"]}
    return body
