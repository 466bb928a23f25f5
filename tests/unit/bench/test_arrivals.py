"""Arrivals have the moments of their distribution, and the seed decides them."""

import numpy as np
import pytest

from xgr_runtime.cli.bench.arrivals import arrivals

SECONDS, RATE = 4000.0, 20.0


@pytest.mark.parametrize("burstiness", [1.0, 0.25, 4.0], ids="shape={}".format)
def test_gaps_have_mean_and_variance_of_the_gamma_distribution(burstiness: float) -> None:
    gaps = np.diff(arrivals(RATE, SECONDS, 3, burstiness))
    # 80,000 gaps: the mean of theirs strays by 1/280 of the deviation, which is at most twice the mean.
    assert gaps.mean() == pytest.approx(1 / RATE, rel=0.03)
    assert gaps.std() * RATE == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_counts_vary_as_much_as_their_mean() -> None:
    counts, _ = np.histogram(arrivals(RATE, SECONDS, 5), bins=int(SECONDS))
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_bursts_crowd_more_requests_into_the_same_second() -> None:
    counts, _ = np.histogram(arrivals(RATE, SECONDS, 5, burstiness=0.25), bins=int(SECONDS))
    assert counts.var() / counts.mean() > 3


def test_all_are_due_in_order_within_the_time() -> None:
    due = arrivals(RATE, 10.0, 1)
    assert (np.diff(due) >= 0).all() and due[0] > 0 and due[-1] < 10.0


def test_the_seed_decides() -> None:
    assert np.array_equal(arrivals(RATE, 10.0, [1, 2]), arrivals(RATE, 10.0, [1, 2]))
    assert not np.array_equal(arrivals(RATE, 10.0, [1, 2])[:5], arrivals(RATE, 10.0, [1, 3])[:5])
