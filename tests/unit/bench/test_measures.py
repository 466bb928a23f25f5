"""Percentiles, rates and counts of a point, on samples whose figures can be had in the head."""

import math

import pytest

from xgr_runtime.cli.bench.judge import Verdict
from xgr_runtime.cli.bench.measures import Sample, percentile, summarise
from xgr_runtime.cli.bench.reference import Agreement
from xgr_runtime.cli.bench.settings import LoadSettings

LOAD = LoadSettings(duration=10.0, warm_up=2.0, slo=0.2)
FINE = Verdict(readable=True, prompt_tokens=100, cached_tokens=25)


def sample(at: float, latency: float = 0.1, code: str = "200", verdict: Verdict | None = FINE) -> Sample:
    return Sample(at, at, at + latency, code, verdict if code == "200" else None)


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 50.0), (0.9, 90.0), (0.99, 99.0), (0.999, 100.0), (0.001, 1.0)]
)
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile([float(v) for v in range(1, 101)], share) == value


def test_percentile_of_one_is_it_and_of_none_is_nan() -> None:
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_latency_counts_from_the_scheduled_send() -> None:
    point = summarise([Sample(3.0, 3.5, 3.6, "200", FINE)], LOAD, 1.0)
    assert point.p50_ms == pytest.approx(600.0)
    assert point.lag_p99_ms == pytest.approx(500.0)
    assert point.late_client


def test_a_prompt_client_is_not_called_late() -> None:
    assert not summarise([Sample(3.0, 3.002, 3.1, "200", FINE)], LOAD, 1.0).late_client


def test_warm_up_counts_in_no_figure() -> None:
    point = summarise([sample(1.9, latency=0.05), sample(2.0), sample(11.9)], LOAD, 1.0)
    assert (point.sent, point.answered) == (2, 2)
    assert point.throughput == pytest.approx(0.1)  # the second came after the ten seconds
    assert point.p50_ms == pytest.approx(100.0)


def test_goodput_leaves_out_answers_past_the_slo() -> None:
    point = summarise([sample(3.0), sample(4.0, latency=0.19), sample(5.0, latency=0.21)], LOAD, 1.0)
    assert point.goodput == pytest.approx(0.2)
    assert point.throughput == pytest.approx(0.3)


def test_every_request_is_counted_once_by_how_it_ended() -> None:
    codes = ["200", "200", "503", "504", "504", "400", "timeout", "connection"]
    point = summarise([sample(3.0 + i, code=code) for i, code in enumerate(codes)], LOAD, 1.0)
    assert point.refused == {"503": 1, "504": 2}
    assert point.failed == {"400": 1, "connection": 1, "timeout": 1}
    assert point.sent == point.answered + sum(point.refused.values()) + sum(point.failed.values()) == 8


def test_the_promise_needs_latency_and_answers() -> None:
    fast = [sample(2.0 + i / 100) for i in range(100)]
    assert summarise(fast, LOAD, 10.0).keeps(LOAD)
    assert summarise([*fast[1:], sample(3.0, code="503")], LOAD, 10.0).keeps(LOAD)
    assert not summarise([*fast[2:], *[sample(3.0, code="503")] * 2], LOAD, 10.0).keeps(LOAD)
    assert summarise([*fast[1:], sample(3.0, latency=0.9)], LOAD, 10.0).keeps(LOAD)  # one of a hundred
    assert not summarise([*fast[2:], *[sample(3.0, latency=0.9)] * 2], LOAD, 10.0).keeps(LOAD)
    assert not summarise([], LOAD, 10.0).keeps(LOAD)


def test_quality_is_summed_and_wrong_sids_count_in_warm_up_too() -> None:
    bad = Verdict(readable=True, invalid=2, duplicates=1, missing=3, prompt_tokens=100)
    agreed = Verdict(readable=True, prompt_tokens=100, agreement=Agreement(first=True, overlap=0.5))
    samples = [sample(0.5, verdict=bad), sample(3.0, verdict=bad), sample(4.0), sample(5.0, verdict=agreed)]
    point = summarise(samples, LOAD, 1.0)
    assert (point.invalid_sids, point.duplicate_sids, point.wrong_sids) == (4, 2, 6)
    assert point.underfilled == 1
    assert point.cached_share == pytest.approx(25 / 300)
    assert (point.compared, point.same_first, point.overlap) == (1, 1.0, 0.5)


def test_an_interrupted_point_covers_the_time_until_then() -> None:
    point = summarise([sample(2.0 + i) for i in range(4)], LOAD, 1.0, stopped=6.0)
    assert point.interrupted and point.seconds == pytest.approx(4.0)
    assert point.throughput == pytest.approx(1.0)
