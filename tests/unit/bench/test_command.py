"""`xgr bench` as a user runs it, against a deployment that lies, refuses or is not there."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lying_deployment import KEY, Beams, finish, start

if TYPE_CHECKING:
    from lying_deployment import Bench, Deployment


def test_reports_every_point_and_ends_well(
    bench_process: Bench, deployment: Deployment, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.png"
    done = bench_process("--rates", "20,40", "--plot", str(plot))
    assert done.code == 0, done.err
    assert [point["offered"] for point in done.line["points"]] == [20.0, 40.0]
    for point in done.line["points"]:
        assert point["answered"] == point["sent"] > 0
        assert point["invalid_sids"] == point["duplicate_sids"] == point["underfilled"] == 0
        assert point["cached_share"] == pytest.approx(0.1)  # 3 of 30 tokens
    assert len(deployment.bodies) >= sum(point["sent"] for point in done.line["points"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_sends_what_the_flags_say(bench: Bench, deployment: Deployment) -> None:
    bench("--rate", "80", "--beam-width", "4:0.5,7:0.5", "--n", "3", "--timeout-ms", "900", "--priority", "2")
    for body in deployment.bodies:
        assert len(body["input_ids"]) == 30
        assert (body["sampling_params"]["n"], body["timeout_ms"], body["priority"]) == (3, 900, 2)
    assert {body["sampling_params"]["beam_width"] for body in deployment.bodies} == {4, 7}


def test_the_seed_decides_what_is_sent(bench: Bench, deployment: Deployment) -> None:
    bench("--rate", "40", "--traffic", "sessions", "--seed", "3")
    first = list(deployment.bodies)
    deployment.bodies.clear()
    bench("--rate", "40", "--traffic", "sessions", "--seed", "3")
    key = json.dumps
    assert sorted(map(key, deployment.bodies)) == sorted(map(key, first))


def test_a_sid_outside_the_catalog_is_an_error(bench: Bench, deployment: Deployment) -> None:
    def lie(width: int, prompt: list[int]) -> Beams:
        return [*deployment.real(width)[1:], ([0, 10, 19], -9.0)]

    deployment.answer = lie
    done = bench("--rate", "20")
    assert done.code == 1
    assert "WRONG ANSWERS" in done.out
    (point,) = done.line["points"]
    assert point["invalid_sids"] >= point["answered"] > 0
    assert point["duplicate_sids"] == 0


def test_a_sid_given_twice_is_an_error(bench: Bench, deployment: Deployment) -> None:
    deployment.answer = lambda width, prompt: [*deployment.real(width)[1:], deployment.real(width)[1]]
    done = bench("--rate", "20")
    assert done.code == 1
    assert "WRONG ANSWERS" in done.out
    (point,) = done.line["points"]
    assert point["duplicate_sids"] >= point["answered"] > 0
    assert point["invalid_sids"] == 0


def test_too_few_results_are_counted(bench: Bench, deployment: Deployment) -> None:
    deployment.answer = lambda width, prompt: deployment.real(width - 1)
    done = bench("--rate", "20")
    (point,) = done.line["points"]
    assert point["underfilled"] == point["answered"] > 0
    assert "fewer results" in done.out


def test_refusals_are_counted_by_status_and_explained(bench: Bench, deployment: Deployment) -> None:
    deployment.status = 503
    done = bench("--rate", "20")
    assert done.code == 1  # nothing was answered
    (point,) = done.line["points"]
    assert point["refused"] == {"503": point["sent"]}
    assert "503: too much" in done.out


def test_answers_of_one_run_are_the_reference_of_the_next(
    bench: Bench, deployment: Deployment, tmp_path: Path
) -> None:
    answers = str(tmp_path / "answers.jsonl")
    flags = ["--rate", "30", "--seed", "1"]
    bench(*flags, "--save-answers", answers)
    (same,) = bench(*flags, "--reference", answers).line["points"]
    assert (same["compared"], same["same_first"], same["overlap"]) == (same["answered"], 1.0, 1.0)

    deployment.answer = lambda width, prompt: [*deployment.real(width + 1)[1:]]
    (other,) = bench(*flags, "--reference", answers).line["points"]
    assert (other["compared"], other["same_first"], other["overlap"]) == (other["answered"], 0.0, 0.8)


def test_a_closed_loop_keeps_its_number_in_flight(bench: Bench) -> None:
    done = bench("--in-flight", "3")
    (point,) = done.line["points"]
    assert point["in_flight"] == 3
    assert point["answered"] == point["sent"] > 3


def test_the_search_reports_the_highest_rate(bench: Bench) -> None:
    done = bench("--rate", "auto", "--start-rate", "10", "--max-runs", "2", "--slo-ms", "5000")
    assert done.code == 0, done.err
    assert done.line["max_rate"] == 20.0
    assert len(done.line["points"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_reports_what_there_is(
    deployment: Deployment, catalog_path: Path, number: signal.Signals
) -> None:
    given = ["--url", deployment.url, "--catalog", str(catalog_path), "--prompt-tokens", "30"]
    process = start(*given, "--beam-width", "5", "--rate", "50", "--warm-up", "0", "--duration", "60")
    assert deployment.asked.wait(60)
    while len(deployment.bodies) < 30:  # a few of these before the first point
        deployment.asked.clear()
        assert deployment.asked.wait(60)
    process.send_signal(number)
    done = finish(process)
    assert done.code == 130, done.err
    (point,) = done.line["points"]
    assert done.line["interrupted"] and point["interrupted"]
    assert 10 <= point["answered"] <= len(deployment.bodies)


def test_needs_a_load(bench: Bench) -> None:
    for flags in ([], ["--rate", "2", "--in-flight", "2"], ["--rate", "fast"], ["--rate", "0"]):
        done = bench(*flags)
        assert (done.code, done.out) == (2, "")
        assert "--rate" in done.err


def test_says_that_nothing_listens(bench: Bench) -> None:
    done = bench("--rate", "2", "--url", "http://127.0.0.1:1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "xgr bench: error: nothing answers at http://127.0.0.1:1: start `xgr serve`, or give its --url\n"
    )


@pytest.mark.parametrize("key", ["", "wrong"], ids=["missing", "wrong"])
def test_says_that_it_needs_a_key(bench: Bench, deployment: Deployment, key: str) -> None:
    deployment.key = KEY
    done = bench("--rate", "2", XGR_API_KEY=key)
    assert done.code == 2
    assert "set XGR_API_KEY" in done.err


def test_sends_the_key(bench: Bench, deployment: Deployment) -> None:
    deployment.key = KEY
    assert bench("--rate", "20", XGR_API_KEY=KEY).code == 0


def test_refuses_another_catalog(bench: Bench, deployment: Deployment) -> None:
    deployment.version = "another"
    done = bench("--rate", "2")
    assert done.code == 2
    assert "serves catalog another" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beam-width", "65"], "at most 64"),
        (["--prompt-tokens", "101"], "at most 100"),
        (["--beam-width", "5:x"], "--beam-width is '5:x'"),
        (["--n", "6"], "--n is 6"),
        (["--traffic", "histories"], "--histories FILE"),
        (["--traffic", "histories", "--histories", "/nowhere"], "--histories /nowhere"),
        (["--reference", "/nowhere"], "--reference /nowhere"),
        (["--catalog", "/nowhere.json"], "/nowhere.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_says_which_setting_cannot_be(bench: Bench, flags: list[str], message: str) -> None:
    done = bench("--rate", "2", *flags)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1


def test_names_the_extra_that_is_missing(bench_process: Bench, tmp_path: Path) -> None:
    import os

    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError('No module named aiohttp')")
    done = bench_process(
        "--rate", "2", PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    assert done.code == 2
    assert "pip install 'xgr-runtime[bench]'" in done.err
