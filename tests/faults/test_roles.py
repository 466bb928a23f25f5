"""A worker that can take prompts or beams changes from one to the other under load; one waits for all."""

import json
import time
from collections.abc import Iterator
from functools import partial
from signal import SIGKILL

import pytest
from census import segments, take, with_room
from crowd import Question, make_prompts, undisturbed
from fault_table import FaultTable
from fleet import Fleet
from instruments import TestData
from trial import Trial
from until import until

from xgr_runtime.transport import Link
from xgr_runtime.wire.answers import WorkerStatus
from xgr_runtime.wire.messages import PROTOCOL, Hello, Role, TakeRole, ToRouter, WorkerHello

MORE_DESCRIPTORS, MORE_SEGMENTS = 10, 8  # for pairs that have not worked together yet
OF_ONE_READER = 6  # segments: the catalog, opened twice, and two of each prefill worker
ROLES: tuple[Role, ...] = ("decode", "prefill")  # in the order in which one that began with prompts has them
TAKEN_OVER = 10.0  # seconds, where less than one is usual on a quiet machine
PATIENCE = 60.0  # seconds; a change takes some four heartbeats after its last request


@pytest.fixture(scope="module")
def flexible(test_data: TestData) -> Iterator[Fleet]:
    with Fleet(test_data.model, test_data.catalog, 1, 1, any_workers=1, standby=1) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def asked(flexible: Fleet, test_data: TestData) -> list[Question]:
    vocabulary = int(json.loads((test_data.model / "config.json").read_text())["vocab_size"])
    with flexible.client() as client:
        return undisturbed(client, make_prompts(vocabulary, 6, 200, seed=9), (8, 32))


def either(fleet: Fleet) -> WorkerStatus:
    with fleet.client() as client:
        return next(worker for worker in client.workers() if "any-0" in worker.address)


def tell(fleet: Fleet, role: Role) -> None:
    """As a planning router does, and wait until the change is done."""
    assert fleet.run_folder is not None
    link: Link[WorkerHello] = Link(f"ipc://{fleet.run_folder}/any-0", ToRouter)
    try:
        until(lambda: link.send(Hello(PROTOCOL, 4711, "planner")), "connected", PATIENCE)
        found = until(link.receive, "introduced", PATIENCE)
        assert found is not None
        assert link.send(TakeRole(4711, found.message.incarnation, role))
        until(lambda: either(fleet).role == role and either(fleet).usable, f"it takes {role}", PATIENCE)
    finally:
        link.close()


def test_roles_change_under_load_and_no_request_notices(
    flexible: Fleet, asked: list[Question], table: FaultTable
) -> None:
    """To and fro: what a role has mapped is given back as the other is taken."""
    process = flexible.process("any-0")
    assert process is not None
    own = segments(process.pid)
    at_rest = with_room(take(flexible), MORE_DESCRIPTORS, MORE_SEGMENTS)
    with Trial("a worker changes its role, and back", flexible, asked, at_rest, table) as it:
        with it.crowd(seed=3, callers=3):
            until(lambda: it.row.tally.correct, "an answer")
            it.fault({"any-0": either(flexible).incarnation or ""})
            for role in ROLES:
                tell(flexible, role)
                until(partial(it.row.tally.answered_after, time.monotonic()), "an answer", PATIENCE)
        assert flexible.process("any-0") == process, "its weights stay"
        until(lambda: segments(process.pid) == own, "all is given back that it had mapped", PATIENCE)
        reader = flexible.process("decode-0")
        assert reader is not None and segments(reader.pid) <= OF_ONE_READER
        assert either(flexible).flexible and not either(flexible).changing


KILLS: tuple[tuple[str, Role], ...] = (("prefill-0", "prefill"), ("decode-0", "decode"), ("any-0", "decode"))


@pytest.mark.in_turns("victim")
@pytest.mark.parametrize(("victim", "other"), KILLS, ids=[victim for victim, _ in KILLS])
def test_a_standby_takes_the_place_of_one_that_is_killed(
    flexible: Fleet, asked: list[Question], table: FaultTable, victim: str, other: Role
) -> None:
    """`other`: the role of the worker that can have either. No request is refused, and nobody else restarts.

    Whoever takes the place of such a worker begins in its first role.
    """
    waits_again(flexible)
    if either(flexible).role != other:
        tell(flexible, other)
    at_rest = with_room(take(flexible), MORE_DESCRIPTORS, MORE_SEGMENTS)
    said, before = len(flexible.lines), flexible.incarnations()
    case = f"kill -9 {victim}, another is {other}, a standby waits"
    with Trial(case, flexible, asked, at_rest, table) as it, it.crowd(seed=4, callers=3):
        until(lambda: it.row.tally.correct, "an answer")
        it.fault({victim: before[victim]})
        flexible.signal(victim, SIGKILL)
        it.wait_answered()
    taken = [line for line in flexible.lines[said:] if f"{victim} was killed" in line]
    assert len(taken) == 1 and "taken over by standby-0" in taken[0]
    assert it.row.whole is not None and it.row.whole < TAKEN_OVER
    after = flexible.incarnations()
    assert {name for name in before if after[name] != before[name]} == {victim}
    assert either(flexible).role == ("prefill" if victim == "any-0" else other)


def waits_again(fleet: Fleet) -> None:
    """One waits for each time that one has begun to wait: whoever took a place was ready before."""
    places = sum("taken over by standby-0" in line for line in list(fleet.lines))
    fleet.standby_ready(["standby-0"], places + 1)
