"""A process that waits with the model in memory takes the place of one that is killed."""

import json
from collections.abc import Iterator
from signal import SIGKILL

import pytest
from census import Census, take, with_room
from crowd import Question, make_prompts, undisturbed
from fault_table import FaultTable
from fleet import Fleet
from instruments import TestData
from trial import Trial
from until import until

TAKEN_OVER = 5.0  # seconds, where less than one is usual
REFUSALS = ("no_workers", "worker_lost", "crashed_workers", "overloaded")
# Of a process: one who waited for any role has memory for prompts, and may be the first to map another's.
MORE_DESCRIPTORS, MORE_SEGMENTS = 10, 8


class Waited:
    """A deployment with a standby, and how often that has been ready."""

    def __init__(self, fleet: Fleet, waiting: list[str], test_data: TestData) -> None:
        self.fleet, self.waiting, self.times = fleet, waiting, 0
        vocabulary = int(json.loads((test_data.model / "config.json").read_text())["vocab_size"])
        with fleet.client() as client:
            self.questions: list[Question] = undisturbed(
                client, make_prompts(vocabulary, 6, 200, seed=8), (8, 32)
            )

    def ready(self) -> Census:
        """Once the next one waits: what the deployment holds at rest."""
        self.times += 1
        self.fleet.standby_ready(self.waiting, self.times)
        return with_room(take(self.fleet), MORE_DESCRIPTORS, MORE_SEGMENTS)


@pytest.fixture(scope="module")
def pairs(test_data: TestData) -> Iterator[Waited]:
    with Fleet(test_data.model, test_data.catalog, 2, 2, standby=1) as fleet:
        yield Waited(fleet, ["standby-0"], test_data)


@pytest.fixture(scope="module")
def sharing(test_data: TestData) -> Iterator[Waited]:
    with Fleet(test_data.model, test_data.catalog, 1, 1, layout="colocated", standby=1) as fleet:
        yield Waited(fleet, ["standby-0-prefill", "standby-0-decode"], test_data)


def kill(waited: Waited, table: FaultTable, case: str, victim: str, lost: list[str], *refusals: str) -> None:
    at_rest = waited.ready()
    with Trial(case, waited.fleet, waited.questions, at_rest, table, refusals) as it:
        before = waited.fleet.incarnations()
        starts = len(waited.fleet.lines)
        with it.crowd(seed=7, callers=3):
            until(lambda: it.row.tally.correct, "an answer")
            waited.fleet.signal(victim, SIGKILL)
            it.fault({name: before[name] for name in lost})
            it.wait_answered()
    taken = [line for line in waited.fleet.lines[starts:] if f"{victim} was killed" in line]
    assert len(taken) == 1 and f"taken over by {', '.join(waited.waiting)}" in taken[0]
    assert it.row.whole is not None and it.row.whole < TAKEN_OVER
    untouched = before.keys() - set(lost)
    assert {name: waited.fleet.incarnations()[name] for name in untouched} == {
        name: before[name] for name in untouched
    }


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_other_pairs_answer_and_the_lost_one_is_replaced(pairs: Waited, table: FaultTable, role: str) -> None:
    """No request is refused meanwhile."""
    kill(pairs, table, f"kill -9 {role}, a standby waits", f"{role}-0", [f"{role}-0"])


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_a_pair_that_shares_memory_is_replaced_as_one(sharing: Waited, table: FaultTable, role: str) -> None:
    lost = ["prefill-0", "decode-0"]
    kill(sharing, table, f"kill -9 {role}, colocated, a standby waits", f"{role}-0", lost, *REFUSALS)
