"""A pair that shares memory is replaced as one by a pair that waits; of single workers see `test_roles`."""

import json
from collections.abc import Iterator
from signal import SIGKILL

import pytest
from census import take
from crowd import Question, make_prompts, undisturbed
from fault_table import FaultTable
from fleet import Fleet
from instruments import TestData
from trial import Trial
from until import until

TAKEN_OVER = 10.0  # seconds, where less than one is usual on a quiet machine
REFUSALS = ("no_workers", "worker_lost", "crashed_workers", "overloaded")
PAIR = "standby-0"


@pytest.fixture(scope="module")
def sharing(test_data: TestData) -> Iterator[Fleet]:
    with Fleet(test_data.model, test_data.catalog, 1, 1, layout="colocated", standby=1) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def asked(sharing: Fleet, test_data: TestData) -> list[Question]:
    vocabulary = int(json.loads((test_data.model / "config.json").read_text())["vocab_size"])
    with sharing.client() as client:
        return undisturbed(client, make_prompts(vocabulary, 6, 200, seed=8), (8, 32))


@pytest.mark.in_turns("role")
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_a_pair_that_shares_memory_is_replaced_as_one(
    sharing: Fleet, asked: list[Question], table: FaultTable, role: str
) -> None:
    waiting = [f"{PAIR}-prefill", f"{PAIR}-decode"]
    places = sum("taken over by" in line for line in list(sharing.lines))
    sharing.standby_ready(waiting, places + 1)
    before, said = sharing.incarnations(), len(sharing.lines)
    case = f"kill -9 {role}, colocated, a standby waits"
    with (
        Trial(case, sharing, asked, take(sharing), table, REFUSALS) as it,
        it.crowd(seed=7, callers=3),
    ):
        until(lambda: it.row.tally.correct, "an answer")
        it.fault(before)
        sharing.signal(f"{role}-0", SIGKILL)
        it.wait_answered(60)
    taken = [line for line in sharing.lines[said:] if f"{role}-0 was killed" in line]
    assert len(taken) == 1 and f"taken over by {', '.join(waiting)}" in taken[0]
    assert it.row.whole is not None and it.row.whole < TAKEN_OVER
