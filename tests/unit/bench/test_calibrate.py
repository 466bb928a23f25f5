"""`xgr bench --calibrate`: what it asks, what it writes, and what it says where nothing can be written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from xgr_runtime.cli.bench.calibrate import cost_file
from xgr_runtime.errors import ConfigError
from xgr_runtime.planning.devices import read_costs
from xgr_runtime.wire.answers import WorkerStatus
from xgr_runtime.wire.messages import LAUNCHES

if TYPE_CHECKING:
    from lying_deployment import Bench, Deployment

MODEL = {
    "weights_hash": "w",
    "dtype": "float32",
    "layers": 3,
    "kv_heads": 2,
    "head_dim": 8,
    "hidden": 32,
    "vocab": 26,
    "tp_size": 1,
}
TOKEN_BYTES = 3 * 2 * 2 * 8 * 4


def worker(role: str, per_token: float, launches: int = 50, known: bool = True) -> dict[str, Any]:
    """As /workers lists one whose launches cost so much."""
    cost = {"fixed": 0.001, "per_token": per_token, "per_pair": 0.0, "most_tokens": 100.0, "most_pairs": 9.0}
    load = {
        "requests": 0,
        "pages_used": 0,
        "pages_cached": 0,
        "pages_total": 777,
        "credits_out": 0,
        "leases": 0,
        "rows_used": 0,
        "counters": {LAUNCHES: launches},
        "cost": cost if known else None,
    }
    state = {"address": "ipc://x", "alive": True, "usable": True, "problem": "", "in_flight": 0}
    return {**state, "role": role, "worker": "w", "model": MODEL, "load": load}


@pytest.fixture
def learned(deployment: Deployment) -> Deployment:
    """Its workers know what their launches cost; each answer says that it took no time in them."""
    deployment.timing = dict.fromkeys(("queue", "prefill", "transfer", "decode", "forward", "wait"), 0.0)
    deployment.workers = [worker("prefill", cost) for cost in (0.3, 0.1, 0.2)]
    deployment.workers += [worker("decode", 0.01), worker("decode", 0.001, launches=3)]
    return deployment


def test_it_writes_what_the_middle_worker_of_each_role_has_learned(
    bench: Bench, learned: Deployment, tmp_path: Path
) -> None:
    done = bench("--calibrate", str(tmp_path / "costs.json"))
    assert done.code == 0, done.err
    costs = read_costs(tmp_path / "costs.json")
    assert (costs.prefill.per_token, costs.decode.per_token) == (0.2, 0.01)
    assert (costs.token_bytes, costs.layers, costs.kv_pages) == (TOKEN_BYTES, 3, 777)
    assert costs.overhead > 0, "all of an answer's time was outside of its workers"
    assert [point["in_flight"] for point in done.line["points"]] == [1, 4]


def test_it_asks_for_all_sizes(bench: Bench, learned: Deployment, tmp_path: Path) -> None:
    bench("--calibrate", str(tmp_path / "costs.json"), "--prompt-tokens", "80", "--beam-width", "40")
    asked = {(len(body["input_ids"]), body["sampling_params"]["beam_width"]) for body in learned.bodies}
    assert asked == {(tokens, width) for tokens in (80, 20, 40, 10) for width in (40, 10, 20, 5)}


def test_workers_that_know_nothing_are_said(bench: Bench, learned: Deployment, tmp_path: Path) -> None:
    learned.workers = [worker("prefill", 0.1), worker("decode", 0.1, launches=2)]
    done = bench("--calibrate", str(tmp_path / "costs.json"))
    assert done.code == 2
    assert "no decode worker knows yet what its launches cost: raise --duration" in done.err
    assert not (tmp_path / "costs.json").exists()


@pytest.mark.parametrize("workers", [[worker("prefill", 0.1, known=False), worker("decode", 0.1)], []])
def test_workers_without_a_cost_know_nothing(workers: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="no prefill worker knows yet"):
        cost_file(msgspec.convert(workers, list[WorkerStatus]), 0.0)


def test_calibration_is_a_load_of_its_own(bench: Bench, learned: Deployment, tmp_path: Path) -> None:
    done = bench("--calibrate", str(tmp_path / "costs.json"), "--rate", "5")
    assert done.code == 2
    assert "one of --rate" in done.err
    assert not learned.bodies
