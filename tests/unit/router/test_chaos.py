"""Whatever happens in whatever order: every request ends, none of them wrongly, and nothing is left of it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from puppet_workers import POISON, Puppet, Theatre

from router.job import Outcome
from router.workers import roster
from router.workers.breaker import LONGEST
from xgr_runtime.errors import Cancelled, CrashedWorkers, RequestError
from xgr_runtime.wire.messages import Role

REQUESTS = 40
EVENTS = ("commit", "answer", "unsound", "fail", "die", "revive", "quiet", "hedge", "abort", "wait")


@pytest.fixture(autouse=True)
def puppets(monkeypatch: pytest.MonkeyPatch) -> None:
    def puppet(self: roster.Roster, address: str, role: Role) -> Puppet:
        return Puppet(address, role, *self._told)

    monkeypatch.setattr(roster.Roster, "_worker", puppet)


def happen(t: Theatre) -> None:
    """One thing that can happen to an attempt or to a worker."""
    attempt, worker = t.chance.choice(t.live) if t.live else None, t.chance.choice(t.workers)
    event = t.chance.choice(EVENTS)
    if event == "die":
        worker.lost("killed")
    elif event == "revive":
        worker.revive()
    elif event == "quiet":
        worker._unanswered = 99
    elif event == "hedge":
        t.hedge()
    elif event == "wait":  # until an open breaker is half open
        worker.breaker._failed_at -= LONGEST
    elif attempt is not None and event == "abort":
        t.dispatcher.abort(attempt.request.job.rid)
    elif attempt is not None and event == "fail":
        t.fail(attempt)
    elif attempt is not None:
        t.commit(attempt)
        if event != "commit":
            t.answer(attempt, sound=event == "answer")


async def finish(t: Theatre, asked: "list[asyncio.Task[Outcome]]") -> list[Outcome | BaseException]:
    """From now on all goes well."""
    for _ in range(20 * REQUESTS):
        for worker in t.workers:
            if not worker.alive:
                worker.revive()
        for attempt in t.live:
            t.commit(attempt)
            t.answer(attempt)
        await t.settle()
        if all(task.done() for task in asked):
            break
    assert all(task.done() for task in asked), "a request hangs"
    return await asyncio.gather(*asked, return_exceptions=True)


def nothing_is_left(t: Theatre) -> bool:
    attempts = t.dispatcher._attempts
    trials = [w.breaker._trial for w in t.dispatcher._workers if w.breaker._trial]
    loads = [w.load or w.in_flight for w in t.workers]
    left = attempts._live or attempts._alone or attempts.admission.backlogs or t.dispatcher._tries or trials
    return not left and not any(loads) and not t.dispatcher.live and not attempts._turns.locked()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_every_request_ends_and_nothing_is_left(seed: int) -> None:
    async def play() -> None:
        t = Theatre(seed, prefill=2, decode=3)
        asked = []
        for number in range(REQUESTS):
            asked.append(t.ask(f"r{number}", (number + 1,)))
            for _ in range(t.chance.randrange(8)):
                await t.settle()
                happen(t)
        for outcome in await finish(t, asked):
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, RequestError), outcome
            else:
                assert outcome.leaves.tolist() == [5, 3]
        assert nothing_is_left(t)

    run(play)


@pytest.mark.parametrize("seed", range(20))
def test_only_the_poison_is_given_up_whoever_is_there_when_workers_die(seed: int) -> None:
    """A worker at work on the poison may die at any time; others neither fail nor are given up."""

    async def play() -> None:
        t = Theatre(seed, prefill=2, decode=3, max_attempts=9)
        place = t.chance.randrange(REQUESTS)
        asked = [t.ask(f"r{n}", POISON if n == place else (n + 1,)) for n in range(REQUESTS)]
        deaths = 0
        while not asked[place].done():
            await t.settle()
            for worker in t.workers:
                if not worker.alive:
                    worker.revive()
            attempt = t.chance.choice(t.live)
            poisoned = attempt.request.job.tokens.tolist() == list(POISON)
            if poisoned and t.chance.random() < 0.5:
                next(w for w in t.workers if w.incarnation == attempt.at_work).lost("it died")
                deaths += 1
            elif t.chance.random() < 0.5:
                t.commit(attempt)
            elif attempt.committed and not poisoned:
                t.answer(attempt)
        given_up, *others = await finish(t, [asked[place], *asked[:place], *asked[place + 1 :]])
        assert isinstance(given_up, CrashedWorkers) and deaths == 2
        assert not [outcome for outcome in others if isinstance(outcome, BaseException)]
        assert nothing_is_left(t)

    run(play)


def test_a_client_that_leaves_while_others_wait_for_their_turn_holds_up_nobody() -> None:
    async def play() -> None:
        t = Theatre(0, prefill=1, decode=1)
        asked = [t.ask(f"r{number}", (number + 1,)) for number in range(4)]
        await t.settle()
        for worker in t.workers[:1]:
            worker.lost("killed")
            worker.revive()
        await t.settle()
        assert len(t.live) == 1, "one at a time"
        t.dispatcher.abort("r1")
        asked[2].cancel()
        await t.settle()
        outcomes = await finish(t, asked)
        assert isinstance(outcomes[1], Cancelled) and isinstance(outcomes[2], asyncio.CancelledError)
        assert not isinstance(outcomes[0], BaseException) and not isinstance(outcomes[3], BaseException)
        assert nothing_is_left(t)

    run(play)
