"""The router dies under load: its clients ask again and are answered, its workers come back by themselves."""

from signal import SIGCONT, SIGKILL, SIGSTOP

from fleet import TIMES, Fleet
from trial import MakeTrial
from until import until

GONE = "is gone: its requests are dropped"


def test_a_killed_router_comes_back_to_the_same_port_and_workers(fleet: Fleet, trial: MakeTrial) -> None:
    with trial("kill -9 router; callers ask again") as it:
        before = fleet.incarnations()
        with it.crowd(seed=3, reconnect=True):
            until(lambda: it.row.tally.correct, "an answer")
            old = fleet.process("router")
            fleet.signal("router", SIGKILL)
            it.fault()
            it.wait_answered()
        new = fleet.process("router")
        assert old is not None and new is not None and old.pid != new.pid
        assert fleet.incarnations() == before, "no worker had to be started again"


def test_a_stopped_router_finds_everything_let_go(fleet: Fleet, trial: MakeTrial) -> None:
    """Its workers free what it had with them; it wakes up and tries those requests again."""
    with trial("SIGSTOP router, then SIGCONT") as it, it.crowd(seed=4, timeout_ms=30_000):
        until(lambda: it.row.tally.correct, "an answer")
        said = len(fleet.lines)
        fleet.signal("router", SIGSTOP)
        it.fault()
        until(
            lambda: sum(GONE in line for line in fleet.lines[said:]) == len(fleet.workers), "workers notice"
        )
        fleet.signal("router", SIGCONT)
        it.wait_answered(TIMES["silence"] + 30)
