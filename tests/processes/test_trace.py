"""What a trace of real processes shows: each request in all of them, in order, and its KV moving early."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from trace_rules import check_trace, end_of, slices

from prefill_worker.scheduler import LEAST_PIECE
from xgr_runtime.checkpoint import read_config
from xgr_runtime.trace.facts import overlaps
from xgr_runtime.wire.answers import Answer

Json = dict[str, Any]


@pytest.fixture(scope="module", params=["frames", "auto"])
def way(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def served(way: str, checkpoint: Path, catalog_source: Path) -> Iterator[Cluster]:
    # Pulled layers are told one by one only where each fills a chunk.
    chunk_bytes = {"auto": 4096, "frames": 1 << 20}[way]
    with Cluster(checkpoint, catalog_source, kv_transfer=way, chunk_bytes=chunk_bytes) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def answers(served: Cluster, checkpoint: Path) -> list[Answer]:
    """Three requests, one after the other, with prompts as long as one forward takes whole on any machine."""
    config = read_config(checkpoint)
    length = min(LEAST_PIECE * 4 // 3, config["max_position_embeddings"] - 8)
    tokens = [[1 + (7 * n + i * i) % (config["vocab_size"] - 1) for i in range(length)] for n in range(3)]
    with served.client() as client:
        return [
            client.generate(input_ids=prompt, beam_width=32, n=5, rid=f"traced-{n}", timeout_ms=60_000)
            for n, prompt in enumerate(tokens)
        ]


@pytest.fixture(scope="module")
def trace(served: Cluster, answers: list[Answer]) -> Json:
    served.settled()  # so that hand-overs have ended, too
    with served.client() as client:
        document: Json = json.loads(client.trace(600.0))
    return document


def row(trace: Json, kind: str) -> int:
    """The pid of the process whose name begins so."""
    found = (e for e in trace["traceEvents"] if e["name"] == "process_name")
    return next(e["pid"] for e in found if e["args"]["name"].startswith(kind))


def test_the_trace_is_whole_and_well_formed(trace: Json) -> None:
    check_trace(trace)
    assert trace["otherData"] | {"origin": 0} == {
        "missing": {},
        "forgotten_before_seconds": {},
        "clock": "CLOCK_MONOTONIC",
        "origin": 0,
    }


def test_each_request_is_in_every_process_in_order_of_time(trace: Json, answers: list[Answer]) -> None:
    router, prefill, decode = (row(trace, kind) for kind in ("router", "prefill", "decode"))
    for answer in answers:

        def one(name: str, pid: int, rid: str = answer.rid) -> Json:
            (found,) = [event for event in slices(trace, name, rid=rid) if event["pid"] == pid]
            return found

        attempt = one("attempt", router)
        order = [
            one("request", router)["ts"],
            end_of(one("intake", router)),
            attempt["ts"],
            one("wait", prefill)["ts"],
            one("prefill", prefill)["ts"],
            end_of(one("prefill", prefill)),
            end_of(one("receive KV", decode)),
            one("search", decode)["ts"],
            end_of(one("search", decode)),
            end_of(attempt),
            one("compose", router)["ts"],
            end_of(one("request", router)),
        ]
        assert all(a <= b for a, b in pairwise(order)), order


def test_each_request_is_followed_by_an_arrow(trace: Json, answers: list[Answer]) -> None:
    arrows = [event for event in trace["traceEvents"] if event["ph"] in "stf"]
    by_number = {event["id"] for event in arrows}
    assert len(by_number) == len(answers)
    for number in by_number:
        points = [event for event in arrows if event["id"] == number]
        kinds = ("router", "prefill", "decode", "router")
        assert [p["pid"] for p in points] == [row(trace, kind) for kind in kinds]
        assert [p["ts"] for p in points] == sorted(p["ts"] for p in points)


def test_forwards_show_their_layers_and_launches_their_parts(trace: Json, checkpoint: Path) -> None:
    layers = read_config(checkpoint)["num_hidden_layers"]
    forwards = slices(trace, "forward")
    for n in range(layers):
        assert len(slices(trace, f"layer {n}")) == len(forwards)
    assert len(slices(trace, "model")) == len(slices(trace, "selection")) == len(slices(trace, "launch"))


def test_early_layers_leave_and_arrive_before_prefill_is_over(
    trace: Json, answers: list[Answer], way: str, checkpoint: Path
) -> None:
    layers = read_config(checkpoint)["num_hidden_layers"]
    assert layers > 1
    for answer in answers:
        (forward,) = slices(trace, "prefill", rid=answer.rid)
        moved = slices(trace, "frames" if way == "frames" else "pull", rid=answer.rid)
        out, taken = ([e for e in moved if e["cat"] == track] for track in ("KV out", "KV in"))
        assert len(out) == len(taken) and {e["args"]["first_layer"] for e in taken} == set(range(layers))
        first = [event for event in out if event["args"]["first_layer"] == 0]
        assert all(forward["ts"] < e["ts"] and end_of(e) < end_of(forward) for e in first)
    found = {overlap.rid: overlap for overlap in overlaps(trace)}
    assert set(found) == {answer.rid for answer in answers}
    # Not timed: the decode worker is idle, so some layer gets there while later ones are computed.
    assert any(overlap.chunks_inside for overlap in found.values())


def test_the_parts_of_an_answers_timing_are_those_of_the_trace(trace: Json, answers: list[Answer]) -> None:
    for answer in answers:
        meta, timing = answer.meta_info, answer.meta_info.timing
        (attempt,) = slices(trace, "attempt", rid=answer.rid)
        whole = timing.queue + timing.prefill + timing.transfer + timing.decode
        assert whole <= meta.e2e_latency
        assert whole == pytest.approx(attempt["dur"] / 1e6, abs=1e-5), "microseconds are rounded"
        (prefill,), (search,) = (slices(trace, name, rid=answer.rid) for name in ("prefill", "search"))
        assert timing.prefill == pytest.approx(prefill["dur"] / 1e6, abs=1e-5)
        assert timing.forward <= timing.decode - timing.wait <= search["dur"] / 1e6 + 1e-5
        assert timing.wait >= 0 and timing.forward + timing.wait <= timing.decode


def xgr_trace(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xgr_runtime.cli", "trace", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_writes_the_file_and_sums_it_up(
    served: Cluster, answers: list[Answer], tmp_path: Path
) -> None:
    out = tmp_path / "t.json"
    done = xgr_trace("--url", served.url, "--seconds", "600", "--out", str(out))
    assert done.returncode == 0, done.stderr
    check_trace(json.loads(out.read_text()))
    assert list(tmp_path.iterdir()) == [out]
    for word in ("router", "prefill prefill-0", "decode decode-0", answers[-1].rid, "receive KV", "perfetto"):
        assert word in done.stdout


def test_a_silent_worker_is_named_and_the_others_are_shown(served: Cluster, answers: list[Answer]) -> None:
    served.signal("decode-0", signal.SIGSTOP)
    try:
        with served.client() as client:
            document = json.loads(client.trace(600.0))
    finally:
        served.signal("decode-0", signal.SIGCONT)
    check_trace(document)
    (reason,) = document["otherData"]["missing"].values()
    assert "no answer" in reason or "gone" in reason
    assert slices(document, "prefill", rid=answers[0].rid) and not slices(document, "search")
