"""`xgr bench` against real processes: its figures add up, and all that is answered is right."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from lying_deployment import Done, finish, start

from xgr_runtime.client import XgrClient
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.planning.devices import read_costs
from xgr_runtime.scheduling.cost_model import LEAST


@pytest.fixture
def flags(deployment: Deployment, catalog_source: Path, checkpoint: Path) -> list[str]:
    where = ["--url", deployment.url, "--catalog", str(catalog_source), "--model-path", str(checkpoint)]
    return [*where, "--beam-width", "8:0.7,40:0.3", "--prompt-tokens", "100", "--warm-up", "0.2"]


def run(flags: list[str], *more: str) -> Done:
    done = finish(start(*flags, *more))
    assert done.code == 0, done.err
    return done


def answered_by(deployment: Deployment) -> float:
    """Requests that the router says it has answered with 200."""
    text = httpx.get(f"{deployment.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("xgr_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if '"200"' in line)


def test_figures_of_an_open_loop_add_up(deployment: Deployment, flags: list[str]) -> None:
    before = answered_by(deployment)
    done = run(flags, "--rate", "5,9", "--duration", "1.5", "--slo-ms", "20000")
    for point in done.line["points"]:
        assert point["sent"] == point["answered"] > 0
        assert point["refused"] == point["failed"] == {}
        assert point["invalid_sids"] == point["duplicate_sids"] == point["underfilled"] == 0
        assert 0 < point["p50_ms"] <= point["p90_ms"] <= point["p99_ms"] < 20_000
        assert 0 < point["goodput"] == point["throughput"]
    served = answered_by(deployment) - before
    assert served >= sum(point["sent"] for point in done.line["points"])  # those of the warm-ups as well
    assert "WRONG" not in done.out


def test_a_closed_loop_counts_no_more_than_was_served(deployment: Deployment, flags: list[str]) -> None:
    before = answered_by(deployment)
    (point,) = run(flags, "--in-flight", "2", "--duration", "1.5").line["points"]
    assert 0 < point["sent"] == point["answered"] <= answered_by(deployment) - before
    assert point["throughput"] * 1.5 <= answered_by(deployment) - before


def test_what_workers_learned_becomes_a_file_of_costs(
    deployment: Deployment, flags: list[str], tmp_path: Path
) -> None:
    with XgrClient(deployment.url, timeout=120) as client:
        for first in range(LEAST):  # so they have learned something, however slow they are
            client.generate(input_ids=[*range(first, first + 50)], beam_width=8, timeout_ms=120_000)
    run(flags, "--calibrate", str(tmp_path / "costs.json"), "--duration", "1")
    costs = read_costs(tmp_path / "costs.json")
    for cost in (costs.prefill, costs.decode):
        assert cost.most_tokens > 1
        assert 0 < cost.fixed + 50 * cost.per_token + 2500 * cost.per_pair < 30, "seconds of a small launch"
    assert 0 < costs.overhead < 30
    assert costs.kv_pages > 1
    assert costs.layers >= 1


def test_the_same_requests_get_the_same_answers(flags: list[str], tmp_path: Path) -> None:
    answers = str(tmp_path / "answers.jsonl")
    load = ["--rate", "8", "--duration", "2", "--traffic", "sessions", "--seed", "4"]
    run(flags, *load, "--save-answers", answers)
    (point,) = run(flags, *load, "--reference", answers).line["points"]
    assert point["compared"] == point["answered"] > 0
    # Another batch moves scores by 1e-5: neighbours may change places, and at the last place one is lost.
    assert point["overlap"] > 0.97
    assert point["same_first"] > 0.9
