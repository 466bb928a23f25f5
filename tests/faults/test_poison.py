"""A prompt that kills every prefill worker that takes it: it is given up, and soon refused at once."""

import time
from dataclasses import replace
from signal import SIGKILL

from crowd import Outcome, Question, Record, judge
from faulty_worker import Fault
from fleet import Fleet
from trial import MakeTrial, Trial

START = 8  # tokens
CRASHED = "crashed_workers"


def test_a_poison_request_is_given_up(fleet: Fleet, questions: list[Question], trial: MakeTrial) -> None:
    """It costs two workers, the default budget; asked again, two more; from then on none."""
    with trial("poison request kills its workers", (CRASHED, "no_workers", "worker_lost")) as it:
        poison = replace(questions[0], prompt=questions[0].prompt[::-1])  # nobody else asks this
        before = {n: i for n, i in fleet.incarnations().items() if n.startswith("prefill")}
        kills = Fault("poison", tokens=list(poison.prompt[:START]), signal=SIGKILL)
        with fleet.client() as client:
            client.flush_cache()
        for name in before:
            fleet.break_(name, kills)
        it.fault(before)
        assert ask(it, poison).detail == CRASHED
        fleet.whole(before)
        second = {n: i for n, i in fleet.incarnations().items() if n.startswith("prefill")}
        for name in before:
            fleet.break_(name, kills)
        assert ask(it, poison).detail == CRASHED
        fleet.whole(second)
        survivors = fleet.incarnations()
        for _ in range(3):
            assert ask(it, poison).detail == CRASHED
        assert fleet.incarnations() == survivors, "its repeats cost nobody"
        innocent = next(q for q in questions if q.prompt[:START] != poison.prompt[:START])
        assert ask(it, innocent).outcome is Outcome.CORRECT


def ask(it: Trial, question: Question) -> Record:
    """One request of this case."""
    asked = time.monotonic()
    with it.fleet.client() as client:
        response = client.http.post("/generate", content=question.body(20_000))
    record = Record(asked, time.monotonic(), *judge(response, question.answer))
    it.row.tally.records.append(record)
    return record
