"""A caller that hangs up, runs out of time or asks for an abort, in each phase of its request."""

import time
from collections.abc import Callable
from http.client import HTTPConnection
from signal import SIGCONT, SIGSTOP

import httpx
import pytest
from census import live_requests
from crowd import Outcome, Question, Record, judge
from faulty_worker import DECODE_POINTS, PREFILL_POINTS
from fleet import Fleet
from trial import MakeTrial, Trial
from until import until

# A prefill worker that has sent everything is needed no more.
PHASES = [("prefill", p) for p in PREFILL_POINTS if p != "sent"] + [("decode", p) for p in DECODE_POINTS]
SHORT_MS = 450  # less than it takes the router to try another pair beside
TRIES = 8  # of a deadline, until it passes where it should
RID = "caught"

End = Callable[[Fleet, HTTPConnection], None]
"""How a caller ends its request while the worker that has it is stopped."""


def hang_up(fleet: Fleet, caller: HTTPConnection) -> None:
    caller.close()


def abort(fleet: Fleet, caller: HTTPConnection) -> None:
    with fleet.client() as other:
        other.abort(RID)


def run_out_of_time(fleet: Fleet, caller: HTTPConnection) -> None:
    time.sleep(SHORT_MS / 1000)


ENDS: list[tuple[str, End, Outcome, str]] = [
    ("client gone", hang_up, Outcome.LEFT, ""),
    ("deadline", run_out_of_time, Outcome.REFUSED, "deadline_exceeded"),
    ("abort", abort, Outcome.REFUSED, "cancelled"),
]


@pytest.mark.in_turns("case")
@pytest.mark.parametrize(("case", "end", "outcome", "code"), ENDS, ids=[case for case, *_ in ENDS])
def test_a_request_that_ends_in_any_phase_leaves_nothing(
    fleet: Fleet,
    questions: list[Question],
    trial: MakeTrial,
    case: str,
    end: End,
    outcome: Outcome,
    code: str,
) -> None:
    with trial(f"{case}, in each of {len(PHASES)} phases", refusals=(code,)) as it:
        for number, (role, point) in enumerate(PHASES):
            with fleet.client() as client:
                client.flush_cache()  # so that every phase is gone through
            found = caught(it, questions[number], role, point, end)
            assert (found.outcome, found.detail) == (outcome, code), (role, point, found)


def caught(it: Trial, question: Question, role: str, point: str, end: End) -> Record:
    """Stop the worker that comes to `point` with this request, end the request, wake the worker.

    On a busy machine a deadline may pass on the way to that point: then it is asked again.
    """
    for _ in range(TRIES):
        if (record := caught_once(it, question, role, point, end)) is not None:
            it.row.tally.records.append(record)
            return record
    raise AssertionError(f"{TRIES} times no request came to {point} within {SHORT_MS} ms")


def caught_once(it: Trial, question: Question, role: str, point: str, end: End) -> Record | None:
    """None where its deadline passed before it came to `point`."""
    fleet, asked = it.fleet, time.monotonic()
    fleet.arm(role, point, SIGSTOP)
    caller = HTTPConnection(fleet.url.removeprefix("http://"), timeout=30)
    timeout_ms = SHORT_MS if end is run_out_of_time else 20_000
    caller.request("POST", "/generate", question.body(timeout_ms, RID), {"content-type": "application/json"})
    try:
        victim = fleet.struck(10 * SHORT_MS / 1000 if end is run_out_of_time else 30.0)
    except AssertionError:
        if end is not run_out_of_time:
            raise
        fleet.mend()
        fleet.wake()
        caller.close()
        return None
    end(fleet, caller)
    with fleet.client() as client:
        until(lambda: not live_requests(client), "the router has let go")
    fleet.mend()
    fleet.signal(victim, SIGCONT)
    outcome, code = (Outcome.LEFT, "") if end is hang_up else read(caller, question)
    caller.close()
    return Record(asked, time.monotonic(), outcome, code)


def read(caller: HTTPConnection, question: Question) -> tuple[Outcome, str]:
    response = caller.getresponse()
    headers = dict(response.getheaders())
    return judge(httpx.Response(response.status, headers=headers, content=response.read()), question.answer)


def test_aborts_race_everything(fleet: Fleet, trial: MakeTrial, long: bool) -> None:
    """COMMIT among the rest: callers leave after a time that is about that of a request."""
    with trial("half of the callers leave: cancel races COMMIT") as it, it.crowd(seed=5, leaving=0.5):
        time.sleep(60 if long else 4)
