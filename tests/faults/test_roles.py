"""A worker that can take prompts or beams changes from one to the other under load, and dies in between."""

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

MORE_DESCRIPTORS, MORE_SEGMENTS = 10, 4  # for pairs that have not worked together yet
OF_ONE_READER = 6  # segments: the catalog, opened twice, and two of each prefill worker
ROLES: tuple[Role, ...] = ("decode", "prefill")  # in the order in which one that began with prompts has them
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


def test_a_worker_that_is_killed_in_its_second_role_is_replaced_in_its_first(
    flexible: Fleet, asked: list[Question], table: FaultTable
) -> None:
    flexible.standby_ready(["standby-0"])
    tell(flexible, "decode")
    at_rest = with_room(take(flexible), MORE_DESCRIPTORS, MORE_SEGMENTS)
    case = "kill -9 a worker of either role, a standby waits"
    with Trial(case, flexible, asked, at_rest, table) as it, it.crowd(seed=4, callers=3):
        until(lambda: it.row.tally.correct, "an answer")
        it.fault({"any-0": either(flexible).incarnation or ""})
        flexible.signal("any-0", SIGKILL)
        it.wait_answered()
    found = either(flexible)
    assert found.role == "prefill" and found.flexible and found.usable
