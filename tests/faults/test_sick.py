"""Workers that live and do wrong: slow, stuck, unreachable one way, refusing, with NaN."""

import time
from signal import SIGKILL

import pytest
from crowd import Outcome, Question
from faulty_worker import Fault
from fleet import TIMES, Fleet
from link_proxy import Direction
from trial import SURVIVORS_ANSWER, MakeTrial, Trial
from until import until

SECONDS = TIMES["silence"] + 1.0  # of load while a fault lasts
START = 8  # tokens


@pytest.mark.in_turns("victim")
@pytest.mark.parametrize("victim", ["prefill-0", "decode-0"])
def test_ten_times_slower(fleet: Fleet, trial: MakeTrial, victim: str) -> None:
    with trial(f"{victim.split('-')[0]} worker ten times slower") as it:
        suffer(it, victim, Fault("slow"))


def test_refusing_after_the_grant(fleet: Fleet, trial: MakeTrial) -> None:
    with trial("decode worker refuses after GRANT") as it:
        suffer(it, "decode-0", Fault("refuse"))


def suffer(it: Trial, victim: str, fault: Fault) -> None:
    """Load while the fault lasts, and nobody notices."""
    with it.crowd(seed=7, callers=3):
        until(lambda: it.row.tally.correct, "an answer")
        it.fleet.break_(victim, fault)
        it.fault()
        time.sleep(SECONDS)
        it.wait_answered()
        it.fleet.mend()


@pytest.mark.in_turns("role")
@pytest.mark.parametrize(("role", "point"), [("prefill", "layer"), ("decode", "beams")])
def test_a_stuck_thread_behind_live_sockets(fleet: Fleet, trial: MakeTrial, role: str, point: str) -> None:
    """ZeroMQ goes on answering its own heartbeats; ours stop."""
    with trial(f"{role} worker's thread stuck") as it, it.crowd(seed=8, callers=3):
        until(lambda: it.row.tally.correct, "an answer")
        victim = fleet.strike(role, point)
        it.fault()
        until(lambda: victim not in fleet.incarnations(), "it counts as lost")
        it.wait_answered()
        fleet.mend()


@pytest.mark.in_turns("victim")
@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("victim", ["prefill-1", "decode-1"])
def test_a_partition_in_one_direction(
    fleet: Fleet, trial: MakeTrial, victim: str, direction: Direction
) -> None:
    way = {"in": "to", "out": "from"}[direction]
    with trial(f"partition: nothing arrives {way} {victim.split('-')[0]}") as it, it.crowd(seed=9, callers=3):
        until(lambda: it.row.tally.correct, "an answer")
        fleet.hold(victim, direction)
        it.fault()
        if direction == "out":
            until(lambda: victim not in fleet.incarnations(), "it counts as lost")
        else:
            time.sleep(SECONDS)
        it.wait_answered()
        fleet.mend()
        until(lambda: victim in fleet.incarnations(), "it is back")


def marked(questions: list[Question]) -> Question:
    """The victim of a fault in the model: no other prompt begins as it does."""
    starts = [question.prompt[:START] for question in questions]
    return next(q for q, start in zip(questions, starts, strict=True) if starts.count(start) == 1)


def test_nan_ends_that_request_alone(fleet: Fleet, questions: list[Question], trial: MakeTrial) -> None:
    victim = marked(questions)
    with trial("NaN from the model for one prompt", refusals=("invalid_logits",)) as it:
        with fleet.client() as client:
            client.flush_cache()  # what was computed before would be served without the fault
        for name in ("prefill-0", "prefill-1"):
            fleet.break_(name, Fault("nan", tokens=list(victim.prompt[:START])))
        it.fault()
        with it.crowd(seed=10):
            until(lambda: it.row.tally.refusals["invalid_logits"] >= 3, "the victim was answered", 60)
        assert it.row.tally.counts[Outcome.REFUSED] < len(it.row.tally.correct)


@pytest.mark.alone
def test_a_worker_of_another_version_is_left_out(fleet: Fleet, trial: MakeTrial) -> None:
    """A rolling restart: the first that is replaced speaks another protocol, and is replaced again."""
    with trial("rolling restart with another protocol version") as it, it.crowd(seed=11):
        victim = "decode-0"
        old = fleet.incarnations()[victim]
        fleet.break_(victim, Fault("protocol"))
        fleet.signal(victim, SIGKILL)
        it.fault()
        until(lambda: speaks_otherwise(fleet, victim), "the router says why")
        fleet.mend()
        fleet.signal(victim, SIGKILL)
        it.fault({victim: old})
        fleet.whole({victim: old})
        assert it.wait_answered() < SURVIVORS_ANSWER


def speaks_otherwise(fleet: Fleet, name: str) -> bool:
    with fleet.client() as client:
        return any(w.worker == name and "it speaks protocol" in w.problem for w in client.workers())
