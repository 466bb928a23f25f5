"""Who takes prompts and who beams: the decision as properties, and a router that tells its workers."""

import math
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from played_workers import PlayedWorker, Stage, play, stage, until

from router.admission.offered import Offered
from router.workers import roles
from router.workers.roles import BUSY, GAIN, REST, SETTLE, Side, Thought, better, think
from xgr_runtime.wire.messages import TakeRole

RATES = st.floats(0.0, 20.0)


@st.composite
def sides(draw: st.DrawFn) -> tuple[Side, Side]:
    def side() -> Side:
        workers = draw(st.integers(0, 6))
        return Side(workers, draw(st.integers(0, workers)), draw(RATES), draw(RATES))

    return side(), side()


def moved(prefill: Side, decode: Side, to: str) -> tuple[Side, Side]:
    """One flexible worker more here and one less there."""
    more = 1 if to == "prefill" else -1
    return (
        prefill._replace(workers=prefill.workers + more, flexible=prefill.flexible + more),
        decode._replace(workers=decode.workers - more, flexible=decode.flexible - more),
    )


@given(sides())
def test_a_change_makes_the_busier_side_clearly_less_busy_and_leaves_nobody_alone(
    both: tuple[Side, Side],
) -> None:
    role = better(*both)
    if role is None:
        return
    prefill, decode = moved(*both, role)
    assert prefill.workers and decode.workers and min(prefill.flexible, decode.flexible) >= 0
    before, after = (max(side.busy() for side in pair) for pair in (both, (prefill, decode)))
    assert before >= BUSY and after <= GAIN * before


@given(sides(), st.floats(1.0, 60.0))
def test_while_the_load_stays_changes_end_and_none_is_undone(both: tuple[Side, Side], step: float) -> None:
    """Looked at every `step` seconds, for as long as 40 changes would take."""
    thought, now, made = Thought(), 0.0, list[str]()
    while now < 40 * (REST + SETTLE):
        now += step
        thought, role = think(thought, *both, now, changing=False)
        if role is not None:
            made.append(role)
            both = moved(*both, role)
    assert len(set(made)) <= 1 and len(made) <= 6
    assert better(*both) is None


@given(st.lists(st.tuples(sides(), st.floats(0.0, 20.0), st.booleans()), max_size=60))
def test_changes_have_rest_between_them_and_never_overlap(
    looks: list[tuple[tuple[Side, Side], float, bool]],
) -> None:
    thought, now, last = Thought(), 0.0, -math.inf
    for (prefill, decode), seconds, changing in looks:
        now += seconds
        thought, role = think(thought, prefill, decode, now, changing)
        if role is not None:
            assert not changing and role == better(prefill, decode)
            assert now - last >= (REST if prefill.workers and decode.workers else SETTLE)
            last = now


def test_a_wish_has_to_last() -> None:
    """A burst of beams that is over before it has settled changes nothing."""
    calm, burst = (Side(2, 1, 0.6), Side(1, 0, 0.3)), (Side(2, 1, 0.2), Side(1, 0, 1.5))
    thought, told = Thought(), list[str | None]()
    for now, load in ((0.0, burst), (SETTLE - 0.1, burst), (SETTLE, calm), (SETTLE + 0.1, burst)):
        thought, role = think(thought, *load, now, False)
        told.append(role)
    assert told == [None] * 4
    thought, role = think(thought, *burst, 2 * SETTLE + 0.1, False)
    assert role == "decode"


def test_a_load_that_turns_to_and_fro_changes_roles_no_more_often_than_the_rest() -> None:
    prompts, beams = Side(2, 1, 2.0), Side(2, 1, 0.2)
    thought, made = Thought(), list[float]()
    for second in range(200):
        turned = second // int(SETTLE + 2) % 2
        thought, role = think(thought, *((beams, prompts) if turned else (prompts, beams)), second, False)
        made += [second] if role else []
    assert len(made) >= 3 and all(later - one >= REST for one, later in pairwise(made))


def test_a_side_that_has_nobody_is_given_one_soon_after_the_change_before() -> None:
    thought, role = think(Thought(changed=0.0), Side(0, 0, 0.1), Side(2, 1, 0.0), 1.0, False)
    assert role is None
    _, role = think(thought, Side(0, 0, 0.1), Side(2, 1, 0.0), 1.0 + SETTLE, False)
    assert role == "prefill" and SETTLE + 1.0 < REST


@given(st.floats(0.01, 5.0), st.integers(1, 50))
def test_what_is_offered_is_a_rate(seconds: float, every: int) -> None:
    """Steady requests for three spans: within a tenth of what they ask for; and forgotten when they end."""
    offered, now = Offered(10.0), 0.0
    while now < 30.0:
        now += every / 50
        offered.add(seconds, 2 * seconds, now)
    expected = seconds * 50 / every
    prompts, beams = offered.rates(now)
    assert prompts == pytest.approx(expected, rel=0.1) and beams == pytest.approx(2 * prompts)
    assert offered.rates(now + 100.0)[0] < 0.001 * expected
    assert offered.rates(now)[0] < 0.001 * expected, "a clock that goes back changes nothing"


def changes(worker: PlayedWorker, incarnation: int, **fields: object) -> None:
    worker.hello = replace(worker.hello, incarnation=incarnation, **fields)


def fields_of(s: Stage, worker: PlayedWorker) -> tuple[str, bool, bool, bool]:
    state = next(state for state in s.dispatcher.workers() if state.address == worker.address)
    return state.role, state.flexible, state.changing, state.usable


@play
async def test_a_worker_is_told_once_and_is_what_it_says_from_then_on(folder: Path) -> None:
    async with stage(folder, 2, 1) as s:
        able = s.prefill[1]
        able.hello = replace(able.hello, change="can")
        await until(lambda: fields_of(s, able) == ("prefill", True, False, True))
        planning, now = s.dispatcher._changes, time.monotonic()
        offered = s.dispatcher._attempts.admission.offered
        for second in range(int(SETTLE) + 2):
            offered.add(0.1, 9.0, now + second)
            planning.look(now + second)
        told = await able.next(TakeRole)
        assert (told.worker, told.role) == (able.hello.incarnation, "decode")
        able.hello = replace(able.hello, change="under way")
        await until(lambda: fields_of(s, able) == ("prefill", True, True, False))
        problem = next(w.problem for w in s.dispatcher.workers() if w.address == able.address)
        assert problem == "it takes the other role, and finishes what it has"
        changes(able, 77, role="decode", change="can", catalogs=s.decode[0].hello.catalogs)
        await until(lambda: fields_of(s, able) == ("decode", True, False, True))
        planning.look(now + REST / 2)
        assert able.inbox.empty()


@play
async def test_one_that_does_not_change_is_never_told(folder: Path) -> None:
    async with stage(folder, 2, 1) as s:
        planning, now = s.dispatcher._changes, time.monotonic()
        for second in range(60):
            s.dispatcher._attempts.admission.offered.add(0.0, 9.0, now + second)
            planning.look(now + second)
        assert all(worker.inbox.empty() for worker in [*s.prefill, *s.decode])


def test_the_bounds_go_together() -> None:
    """A change that gains less than the margin could be wished back by a load that wavers by as much."""
    assert 0 < roles.BUSY < 1 and 0 < roles.GAIN < 1 and roles.SETTLE < roles.REST
