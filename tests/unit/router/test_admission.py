"""What is promised, on which pair, and what is refused: lists of cases, in made-up seconds."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission.admission import TRIAL, Admission, Ask, Promise
from router.admission.backlog import Backlog, Share
from router.admission.margins import Margin
from router.admission.pairing import Candidate
from xgr_runtime.errors import DeadlineExceeded, NoWorkers, Overloaded
from xgr_runtime.wire.messages import ModelIdentity, StepCost

MODEL = ModelIdentity("hash", "float32", 4, 2, 32, 192, 1027, 1)
PER_TOKEN = StepCost(
    0.0, 0.01, 0.0
)  # a prompt of 100 tokens takes a second, and so does a search of 100 beams
SEARCH = (1, 99)  # beams of both levels


def prefill(
    name: str = "p0", incarnation: int = 1, cost: StepCost | None = PER_TOKEN, reuse: int = 0
) -> Candidate:
    return Candidate(name, incarnation, MODEL, 0, (), cost, reuse)


def decode(name: str = "d0", incarnation: int = 11, cost: StepCost | None = PER_TOKEN) -> Candidate:
    return Candidate(name, incarnation, MODEL, 0, ["v"], cost)


P, D = prefill(), decode()


def sure() -> Admission:
    """Whose predictions are taken as they are."""
    admission = Admission()
    admission.own_margin, admission.wait_margin = Exact(), Exact()
    return admission


class Exact(Margin):
    def value(self, now: float) -> float:
        return 1.0


def admit(
    admission: Admission,
    seconds: float,
    now: float = 0.0,
    tokens: int = 100,
    priority: int = 0,
    p: list[Candidate] | None = None,
    d: list[Candidate] | None = None,
    accepted: bool = False,
) -> Promise:
    ask = Ask(tokens, SEARCH, now + seconds, priority)
    return admission.admit(ask, p or [P], d or [D], "v", now, accepted=accepted)


def test_what_no_idle_pair_can_do_in_time_is_refused_for_good() -> None:
    admission = sure()
    admission.tried_at = 0.0
    with pytest.raises(DeadlineExceeded, match="2000 ms are needed, 1900 are left"):
        admit(admission, 1.9)
    assert admit(sure(), 2.1).after == pytest.approx(1.0)


@pytest.mark.parametrize("proven", [False, True])
def test_equals_that_were_only_tried_are_taken_for_equals(proven: bool) -> None:
    """Whatever their trials gave; else the slower one would get no request that shows what it can do."""
    slow = StepCost(0.0, 1.0, 0.0)
    ps = [prefill(), prefill("p1", 2, slow)._replace(proven=proven)]
    ds = [decode(), decode("d1", 12, slow)._replace(proven=proven)]
    admission = sure()
    used = [admit(admission, 99, p=ps, d=ds).pair for _ in range(4)]
    names = {pair.prefill.name for pair in used} | {pair.decode.name for pair in used}
    assert names == ({"p0", "d0"} if proven else {"p0", "p1", "d0", "d1"})


def test_now_and_then_an_idle_pair_may_try_what_seems_too_much() -> None:
    admission = sure()
    admission.tried_at = 0.0
    promise = admit(admission, 1.9, now=TRIAL)
    with pytest.raises(DeadlineExceeded):
        admit(admission, 1.9, now=3 * TRIAL)  # the pair is not idle
    admission.end(promise, 3 * TRIAL, late=True)
    trial = admit(admission, 1.9, now=3 * TRIAL)
    admission.end(trial, 4 * TRIAL, answered=True)
    admission.end(
        admit(admission, 2.1, now=3.5 * TRIAL), 3.6 * TRIAL, answered=True
    )  # tells nothing of others
    with pytest.raises(DeadlineExceeded):
        admit(admission, 1.9, now=3.9 * TRIAL)
    admit(admission, 1.9, now=4.5 * TRIAL)


def test_what_the_backlog_makes_late_is_to_come_again_and_when() -> None:
    admission = sure()
    admit(admission, 2.1)
    with pytest.raises(Overloaded) as refused:
        admit(admission, 2.5)
    assert refused.value.retry_after == pytest.approx(0.5) and "in 1 s" in refused.value.message
    admit(admission, 3.1)  # both workers are busy at once: one prompt and two searches, or the reverse


def test_nobody_is_accepted_at_the_cost_of_another_promise() -> None:
    admission = sure()
    first = admit(admission, 2.5)
    with pytest.raises(Overloaded):  # it is more urgent, and would be in time itself
        admit(admission, 2.4)
    admission.end(first, 0.0, answered=True)
    admit(admission, 2.4)


def test_a_higher_priority_may_break_promises_and_a_lower_one_waits() -> None:
    admission = sure()
    admit(admission, 2.5)
    admit(admission, 9.0, priority=1)
    with pytest.raises(Overloaded):
        admit(admission, 3.5, priority=-1)  # behind both
    admit(admission, 9.0, priority=-1)


def test_an_accepted_request_is_tried_again_whoever_waits() -> None:
    admission = sure()
    admit(admission, 2.1)
    with pytest.raises(Overloaded):
        admit(admission, 2.05)
    admit(admission, 2.05, accepted=True)


def test_the_pair_that_is_through_first_is_taken() -> None:
    fast = decode("d1", 12, StepCost(0.0, 0.005, 0.0))
    admission = sure()
    promises = [admit(admission, 99.0, d=[D, fast]) for _ in range(4)]
    # One prompt a second: the fast one is always free again when the next is computed.
    assert [promise.pair.decode.name for promise in promises] == ["d1"] * 4
    knows_it = prefill("p1", 2, reuse=60)
    promise = admit(sure(), 99.0, p=[P, knows_it])
    assert promise.pair.prefill.name == "p1" and promise.forecast.own == pytest.approx(1.4)


def test_work_spreads_over_equal_workers() -> None:
    admission, p, d = sure(), [P, prefill("p1", 2)], [D, decode("d1", 12)]
    pairs = [admit(admission, 99.0, p=p, d=d).pair for _ in range(6)]
    assert [pair.prefill.name for pair in pairs] == ["p0", "p1"] * 3
    assert {pair.decode.name for pair in pairs} == {"d0", "d1"}


def test_where_costs_are_unknown_everybody_is_admitted() -> None:
    for p, d in (([prefill(cost=None)], [D]), ([P], [decode(cost=None)])):
        admission = sure()
        for _ in range(50):
            admit(admission, 2.1, p=p, d=d)


def test_a_worker_that_does_not_know_its_cost_is_taken_to_be_like_the_others() -> None:
    admission, p, d = sure(), [P, prefill("p1", 2, None)], [D, decode("d1", 12, None)]
    pairs = [admit(admission, 99.0, p=p, d=d).pair for _ in range(6)]
    assert [pair.prefill.name for pair in pairs] == ["p0", "p1"] * 3, "else it would seem free, and get all"
    assert {pair.decode.name for pair in pairs} == {"d0", "d1"}


def test_without_a_pair_nobody_is_admitted() -> None:
    with pytest.raises(NoWorkers):
        sure().admit(Ask(1, SEARCH, 9.0), [P], [], "v", 0.0)


def test_time_that_passed_is_taken_off_what_is_under_way() -> None:
    admission = sure()
    admit(admission, 2.1)
    with pytest.raises(Overloaded):
        admit(admission, 2.5, now=0.1)
    admit(admission, 2.5, now=0.6)


def test_a_prompt_that_is_handed_over_burdens_the_prefill_worker_no_more() -> None:
    admission = sure()
    promise = admit(admission, 2.1)
    admission.committed(promise, 1.0)
    admission.committed(promise, 1.0)
    assert list(admission.backlogs) == [D.incarnation]
    admission.end(promise, 2.0, answered=True)
    admission.end(promise, 2.0, answered=True)
    assert not admission.backlogs


@given(
    st.lists(
        st.tuples(st.floats(2.1, 30), st.integers(-1, 1), st.sampled_from(["end", "commit", "late", "keep"])),
        max_size=40,
    )
)
def test_whatever_ends_how_nothing_stays_in_the_books_and_promises_fit(
    drawn: list[tuple[float, int, str]],
) -> None:
    admission, live, now = sure(), list[Promise](), 0.0
    for seconds, priority, fate in drawn:
        now += 0.1
        try:
            live.append(admit(admission, seconds, now, priority=priority))
        except Overloaded:
            continue
        if fate == "commit":
            admission.committed(live[-1], now)
        elif fate != "keep":
            admission.end(live.pop(), now, late=fate == "late")
        for backlog in admission.backlogs.values():
            assert backlog.shares == sorted(backlog.shares, key=lambda share: share.rank)
    for promise in live:
        admission.end(promise, now)
    assert not admission.backlogs


@given(st.lists(st.floats(2.1, 20), min_size=1, max_size=40))
def test_accepted_requests_of_one_priority_are_all_foreseen_to_be_in_time(drawn: list[float]) -> None:
    admission = sure()
    accepted = []
    for seconds in drawn:
        try:
            accepted.append(admit(admission, seconds))
        except Overloaded:
            continue
    assert accepted
    assert all(promise.forecast.total <= promise.deadline + 1e-9 for promise in accepted)  # rounding


def test_margins_follow_the_quantile_and_forget() -> None:
    margin, draw = Margin(), random.Random(3)
    ratios = [draw.lognormvariate(0.0, 0.3) for _ in range(4000)]
    for index, ratio in enumerate(ratios):
        margin.observe(ratio, index / 100)
    quantile = sorted(ratios)[int(0.99 * len(ratios))]
    assert margin.value(40.0) == pytest.approx(quantile, rel=0.25)  # 40 values lie above it
    assert margin.value(40.0 + 3600) == pytest.approx(1.2)


def test_a_margin_learns_from_answers_and_from_those_that_never_came() -> None:
    admission = Admission()
    before = admission.own_margin.value(0.0)
    admission.end(admit(admission, 9.0), 9.0, late=True)
    assert admission.own_margin.value(9.0) > before
    raised = admission.own_margin.value(9.0)
    admission.end(admit(admission, 9.0, now=9.0), 10.0, answered=True)
    assert admission.own_margin.value(10.0) < raised
    kept = admission.own_margin.value(10.0)
    admission.end(admit(admission, 9.0, now=10.0), 10.0)  # its client went away
    assert admission.own_margin.value(10.0) == kept


def test_those_behind_know_what_overtook_them() -> None:
    backlog = Backlog()
    slow = Share((0, 9.0), 1.0, 0.0)
    backlog.add(slow, 0.0)
    backlog.add(Share((0, 5.0), 2.0, 0.0), 0.0)
    assert slow.ahead == 2.0 and backlog.ahead((0, 9.0), 0.0) == 3.0 and backlog.ahead((0, 1.0), 0.0) == 0.0


def test_work_of_two_workers_that_take_turns_is_done_one_after_the_other() -> None:
    """A prompt and a search take a second each: the second request is through after four, not three."""
    p, d = (worker._replace(turns="cores") for worker in (P, D))
    admission = sure()
    first = admit(admission, 2.1, p=[p], d=[d])
    with pytest.raises(Overloaded) as refused:
        admit(admission, 3.9, p=[p], d=[d])
    assert refused.value.retry_after == pytest.approx(0.1)
    admit(admission, 4.1, p=[p], d=[d])
    admission.committed(first, 1.0)
    with pytest.raises(Overloaded):  # a search, then a prompt and a search, and then ours
        admit(admission, 4.9, now=1.0, p=[p], d=[d])
    admit(admission, 5.1, now=1.0, p=[p], d=[d])


def test_where_turns_are_taken_prompt_and_search_both_delay_those_behind() -> None:
    p, d = (worker._replace(turns="cores") for worker in (P, D))
    admission = sure()
    admit(admission, 3.5, p=[p], d=[d])
    with pytest.raises(Overloaded):  # more urgent, and in time itself
        admit(admission, 2.1, p=[p], d=[d])
    assert admit(sure(), 2.1, p=[p], d=[d]).after == pytest.approx(1.0)


IMPOSSIBLE = {
    "nan": StepCost(math.nan, 0.01, 0.0),
    "nan-per-pair": StepCost(0.0, 0.01, math.nan),
    "infinite": StepCost(0.0, math.inf, 0.0),
    "overflows": StepCost(0.0, 1e308, 1e308),
    "negative": StepCost(-1.0, 0.01, 0.0),
    "nan-reach": StepCost(0.0, 0.01, 0.0, math.nan, 1.0),
    "no-reach": StepCost(0.0, 0.01, 0.0, 1.0, -1.0),
}


@pytest.mark.parametrize("cost", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_costs_that_cannot_be_are_not_believed(cost: StepCost) -> None:
    admission = sure()
    wrong_p, wrong_d = prefill("p1", 2, cost), decode("d1", 12, cost)
    promise = admit(admission, 9.0, p=[wrong_p], d=[wrong_d])
    assert not promise.foreseen and promise.after == 0.0
    admission.end(promise, 1.0, answered=True)
    assert not admission.backlogs
    beside = admit(sure(), 9.0, p=[P, wrong_p], d=[D, wrong_d])
    assert beside.foreseen and beside.forecast.total == pytest.approx(2.0)


@pytest.mark.parametrize("cost", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_refusal_names_a_finite_time_whatever_workers_say(cost: StepCost) -> None:
    admission = sure()
    pairs = {"p": [P, prefill("p1", 2, cost)], "d": [D, decode("d1", 12, cost)]}
    with pytest.raises(Overloaded) as refused:
        for _ in range(20):
            admit(admission, 3.0, **pairs)  # type: ignore[arg-type]
    assert 0 < refused.value.retry_after < 100
