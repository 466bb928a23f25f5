"""Restart decisions as cases, and the supervisor over real tiny processes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised import Running
from until import until

from xgr_runtime.errors import StartupError
from xgr_runtime.launcher import supervisor as module
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.supervisor import (
    Phase,
    StartGroup,
    State,
    StopRequest,
    Supervisor,
    backoff,
    may_restart,
    moved,
    overdue,
    stuck,
)

Tiny = Callable[..., Program]


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 0.2), (2, 0.4), (3, 0.8), (6, 6.4), (7, 10.0), (10_000, 10.0)]
)
def test_backoff(failures: int, seconds: float) -> None:
    assert backoff(failures) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("before", "lived", "failures"),
    [
        (State(Phase.READY, 0.0, 3), 59.9, 4),
        (State(Phase.READY, 0.0, 3), 60.0, 1),  # a minute of service makes up for it
        (State(Phase.STARTING, 0.0, 3), 500.0, 4),  # a slow start is no service
        (State(Phase.STARTING, 0.0, 0), 1.0, 1),
    ],
)
def test_failures_in_a_row(before: State, lived: float, failures: int) -> None:
    assert moved(before, Phase.WAITING, lived) == State(Phase.WAITING, lived, failures)


def test_starting_keeps_the_count() -> None:
    assert moved(State(Phase.WAITING, 1.0, 4), Phase.STARTING, 2.0) == State(Phase.STARTING, 2.0, 4)
    assert moved(State(Phase.STARTING, 2.0, 4), Phase.READY, 3.0) == State(Phase.READY, 3.0, 4)


@pytest.mark.parametrize("phase", list(Phase))
def test_what_is_due(phase: Phase) -> None:
    state = State(phase, 10.0, 2)
    assert [may_restart(state, now) for now in (10.3, 10.5)] == [False, phase is Phase.WAITING]
    assert [overdue(state, now, 5.0) for now in (14.9, 15.0)] == [False, phase is Phase.STARTING]


Supervise = Callable[..., Running]


def test_starts_in_order_and_stops_in_the_opposite_one(
    tiny: Tiny, supervise: Supervise, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    groups = [StartGroup([tiny(name, marks=marks)], 10.0) for name in ("worker", "router")]
    running = supervise(*groups)
    assert set(running.infos) == {"worker", "router"}
    running.end()
    assert marks.read_text().splitlines() == ["start worker", "start router", "stop router", "stop worker"]


def test_killed_child_comes_back(tiny: Tiny, supervise: Supervise) -> None:
    running = supervise(StartGroup([tiny("a"), tiny("b")], 10.0))
    first, other = running.infos["a"]["pid"], running.infos["b"]["pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: running.infos["a"]["pid"] != first, "another one runs", 20)
    assert running.infos["b"]["pid"] == other
    assert running.supervisor.restarts == 1


@pytest.mark.parametrize(
    ("beat", "now", "timeout", "expected"),
    [(10.0, 74.9, 60.0, False), (10.0, 75.0, 60.0, True), (0.0, 1e9, 0.0, False)],
)
def test_stuck(beat: float, now: float, timeout: float, expected: bool) -> None:
    assert stuck(beat, now, timeout) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is stopped")
def test_stopped_child_is_replaced_and_its_mate_stays(
    tiny: Tiny,
    supervise: Supervise,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STUCK_ROOM", 0.5)
    group = StartGroup([tiny("a", stuck_timeout=1.0), tiny("b", stuck_timeout=1.0)], 10.0)
    running = supervise(group, stuck_timeout=1.0)
    first, other = running.infos["a"]["pid"], running.infos["b"]["pid"]
    os.kill(first, signal.SIGSTOP)
    until(lambda: running.infos["a"]["pid"] != first, "another one runs", 20)
    assert "a is stopped, it made no turn for 1 s" in caplog.text
    assert running.infos["b"]["pid"] == other


@pytest.mark.parametrize("act", ["stuck", "stuck-in-c"])
def test_stuck_child_ends_itself_and_is_replaced(
    act: str, tiny: Tiny, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    running = supervise(StartGroup([tiny(act=act, stuck_timeout=1.0)], 10.0), stuck_timeout=1.0)
    first = running.infos["tiny"]["pid"]
    until(lambda: running.infos["tiny"]["pid"] != first, "another one runs", 20)
    assert "tiny was killed by SIGALRM" in caplog.text


def test_child_that_ends_by_itself_comes_back(tiny: Tiny, supervise: Supervise) -> None:
    running = supervise(StartGroup([tiny(act="brief")], 10.0))
    until(lambda: running.supervisor.restarts >= 2, "two restarts", 20)


def test_crash_loop_is_named(
    tiny: Tiny,
    supervise: Supervise,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.01)
    running = supervise(StartGroup([tiny(act="once", marks=tmp_path / "marks")], 10.0))
    os.kill(running.infos["tiny"]["pid"], signal.SIGKILL)
    until(lambda: "crash loop: 5 failures in a row" in caplog.text, "it says so", 20)
    assert "the second start is refused" in caplog.text


@pytest.mark.parametrize(
    ("act", "message"),
    [("refuse", "no such model: give another"), ("crash", "boom"), ("silent", "not ready after")],
)
def test_failed_first_start_ends_everything(tiny: Tiny, supervise: Supervise, act: str, message: str) -> None:
    group = StartGroup([tiny("good"), tiny("bad", act=act), tiny("bad-too", act=act)], 10.0)
    running = supervise(group, start_timeout=3.0 if act == "silent" else 30.0)
    running.thread.join(60.0)
    assert message in str(running.error)
    assert "\n" not in str(running.error)


def test_what_never_serves_ends_with_the_reason(tiny: Tiny) -> None:
    supervisor = Supervisor([StartGroup([tiny()], 10.0)], 3.0, StopRequest())
    with pytest.raises(StartupError, match="not serving after 3 s: the pair does not match"):
        supervisor.run(lambda _: "the pair does not match")


def test_stop_before_the_start_starts_nothing(tiny: Tiny, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.ask()
    Supervisor([StartGroup([tiny(marks=tmp_path / "marks")], 10.0)], 30.0, stop).run(lambda _: "")
    assert not (tmp_path / "marks").exists()


def test_a_chore_that_fails_drains_and_ends_everything(
    tiny: Tiny, supervise: Supervise, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marks, broken = tmp_path / "marks", threading.Event()

    def chore() -> None:
        if broken.is_set():
            raise StartupError("the folder is gone: name another")

    running = supervise(StartGroup([tiny(marks=marks)], 10.0), chore=chore)
    broken.set()
    running.thread.join(60.0)
    assert str(running.error) == "the folder is gone: name another"
    assert "the folder is gone: name another; stopping" in caplog.text
    assert marks.read_text().splitlines() == ["start tiny", "stop tiny"]


def test_grace_ends_in_sigkill(tiny: Tiny, supervise: Supervise) -> None:
    running = supervise(StartGroup([tiny(act="deaf")], 0.2))
    running.end()
    assert running.supervisor.pid("tiny") is None


def test_second_request_kills_at_once(tiny: Tiny, supervise: Supervise) -> None:
    running = supervise(StartGroup([tiny(act="deaf")], 3600.0))
    running.stop.ask()
    time.sleep(0.2)
    assert running.thread.is_alive()  # it drains, for up to an hour
    running.end()


def test_a_signal_in_the_middle_of_asking_does_no_harm() -> None:
    """A handler interrupts whatever runs, also another `ask`: with a lock inside, one of these would hang."""
    request = StopRequest()
    before = signal.signal(signal.SIGVTALRM, lambda *_: request.ask())
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 50e-6, 50e-6)
        for _ in range(100_000):
            request.ask()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert request.drain and request.kill
