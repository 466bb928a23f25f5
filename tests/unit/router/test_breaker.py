"""When a worker's breaker opens, tries and closes: plain calls under a clock that the test sets."""

import logging

import pytest

from router.workers.breaker import FIRST, LONGEST, Breaker
from xgr_runtime.wire.messages import AttemptId


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def id_of(number: int) -> AttemptId:
    return AttemptId(1, number, 1, 10, 20)


def fail(breaker: Breaker, clock: Clock, number: int = 0) -> None:
    """An attempt that begins now and fails later."""
    began = clock.now
    breaker.began(id_of(number))
    clock.now += 0.01
    breaker.failed(id_of(number), began)


def opened(most: int = 3) -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker("decode worker at x", most, clock)
    for _ in range(most):
        assert breaker.state == "closed" and breaker.admits
        fail(breaker, clock)
    return breaker, clock


def test_failures_in_a_row_open_it_and_an_answer_between_does_not() -> None:
    breaker, _ = opened()
    assert breaker.state == "open" and not breaker.admits
    assert "3 times in a row" in breaker.problem
    clock = Clock()
    other = Breaker("x", 2, clock)
    for _ in range(5):
        fail(other, clock)
        other.succeeded()
    assert other.state == "closed" and other.problem == ""


def test_what_breaks_many_attempts_at_once_is_one_failure() -> None:
    clock = Clock()
    breaker = Breaker("x", 2, clock)
    began = clock.now
    clock.now += 1.0
    for number in range(10):
        breaker.failed(id_of(number), began)
    assert breaker.state == "closed"
    fail(breaker, clock)
    assert breaker.state == "open"


def test_after_a_while_one_attempt_at_a_time_tries_it() -> None:
    breaker, clock = opened()
    clock.now += FIRST
    assert breaker.state == "half open" and breaker.admits and breaker.problem == ""
    breaker.began(id_of(7))
    assert not breaker.admits
    breaker.ended(id_of(6))
    assert not breaker.admits, "another attempt than the trial"
    breaker.ended(id_of(7))
    assert breaker.admits, "a cancelled trial says nothing"
    breaker.began(id_of(8))
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.admits
    fail(breaker, clock)
    assert breaker.state == "closed", "it counts from the beginning"


def test_a_failed_trial_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    breaker, clock = opened()
    pause = FIRST
    for _ in range(8):
        clock.now += pause * 0.99 - 0.01
        assert breaker.state == "open"
        clock.now += pause * 0.01 + 0.02
        assert breaker.state == "half open"
        fail(breaker, clock)
        pause = min(LONGEST, 2 * pause)
    assert pause == LONGEST
    clock.now += LONGEST + 1
    breaker.succeeded()
    for _ in range(3):
        fail(breaker, clock)
    clock.now += FIRST + 0.01
    assert breaker.state == "half open", "after it was closed the first pause is short again"


def test_failures_of_older_attempts_do_not_end_a_trial() -> None:
    breaker, clock = opened()
    clock.now += FIRST + 0.01
    breaker.began(id_of(9))
    breaker.failed(id_of(1), clock.now)
    assert breaker.state == "half open" and not breaker.admits


def test_every_change_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "router.workers.breaker"):
        breaker, clock = opened()
        clock.now += FIRST
        breaker.began(id_of(1))
        breaker.succeeded()
        breaker.succeeded()
    lines = [record.message for record in caplog.records]
    assert [line.split("breaker is ")[1].split(",")[0].split(":")[0] for line in lines] == [
        "open",
        "half open",
        "closed",
    ]
    assert all(line.startswith("decode worker at x") for line in lines)
