"""Second tries: after answers that cannot be, after workers that died, and beside workers that seem stuck."""

import asyncio
import math
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from played_workers import LOAD, MODEL, VIEW, PlayedWorker, Stage, play, result_of, stage, until, view_of

from router.dispatch.hedge import hedge
from router.job import Outcome
from router.workers.breaker import FIRST
from xgr_runtime.errors import CrashedWorkers, NoWorkers, WorkerLost
from xgr_runtime.scheduling.queue import BATCH
from xgr_runtime.wire.messages import (
    Cancel,
    Committed,
    DecodeRequest,
    Failed,
    Message,
    PrefillRequest,
    Result,
    StepCost,
)


def nonsense(request: DecodeRequest) -> Result:
    """A leaf that, counted from the end, would name another SID."""
    leaves = np.array([5, -1], np.int32)
    return msgspec.structs.replace(result_of(request), leaves=leaves.tobytes())


async def answered(worker: PlayedWorker, *asked: "asyncio.Task[object]") -> DecodeRequest:
    """The worker's next request, all of which it does."""
    request: DecodeRequest = await worker.next(DecodeRequest)
    worker.send(Committed(request.id))
    worker.send(result_of(request))
    return request


# --- answers that cannot be ------------------------------------------------------------------------------


@play
async def test_an_unsound_answer_is_never_given_but_tried_elsewhere(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        answer = s.ask()
        first = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(nonsense(first))
        await answered(s.decode[1])
        outcome = await answer
        assert outcome.leaves.tolist() == [5, 3] and outcome.attempts == 2 and s.idle


@play
async def test_a_request_keeps_its_version_of_the_catalog_on_every_pair(folder: Path) -> None:
    """A newer one came before its first attempt: it goes to holders of its own, also at a second try."""
    async with stage(folder, 1, 3) as s:
        newer = view_of(50)
        both, only_new = [VIEW.version, newer.version], [newer.version]
        for worker, held in zip(s.decode, (only_new, both, both), strict=True):
            worker.hello = msgspec.structs.replace(worker.hello, catalogs=held)
        s.catalogs.add(newer)
        await until(lambda: all(worker.usable for worker in s.dispatcher.workers()))
        answer = s.ask()  # a job of the old one
        first = await s.decode[1].next(DecodeRequest)
        s.decode[1].send(nonsense(first))
        second = await answered(s.decode[2])
        assert [first.catalog, second.catalog] == [VIEW.version] * 2
        assert (await answer).attempts == 2 and s.decode[0].inbox.empty()


@play
async def test_where_all_answers_are_unsound_there_is_an_error(folder: Path) -> None:
    async with stage(folder, max_attempts=2) as s:
        answer = s.ask()
        for _ in range(2):
            s.decode[0].send(nonsense(await s.decode[0].next(DecodeRequest)))
            await s.decode[0].next(Cancel)
        with pytest.raises(WorkerLost, match="unsound: a leaf is not in the catalog"):
            await answer
        assert s.idle


@play
async def test_only_the_worker_that_searches_can_answer(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        failure = Failed(request.id, "decode", "worker_lost", "a lie")
        s.prefill[0].send(nonsense(request))
        for message in (Committed(request.id), nonsense(request), failure):
            s.decode[1].send(message)
        await asyncio.sleep(0.05)
        assert not answer.done() and s.decode[1].inbox.empty()
        s.decode[0].send(result_of(request))
        assert (await answer).attempts == 1


# --- breakers --------------------------------------------------------------------------------------------


async def broken(s: Stage) -> None:
    """Two requests in a row that decode worker 0 fails, and 1 answers if there is one."""
    for number in range(2):
        answer = s.ask(f"broken-{number}")
        s.decode[0].send(nonsense(await s.decode[0].next(DecodeRequest)))
        await s.decode[0].next(Cancel)
        if len(s.decode) > 1:
            await answered(s.decode[1])
        await asyncio.gather(answer, return_exceptions=True)


@play
async def test_a_worker_that_fails_in_a_row_gets_no_requests_and_says_why(folder: Path) -> None:
    async with stage(folder, 1, 2, breaker_failures=2) as s:
        await broken(s)
        state = s.dispatcher.workers()[1]
        assert state.alive and not state.usable and "failed 2 times in a row" in state.problem
        answer = s.ask()
        await answered(s.decode[1])
        assert (await answer).attempts == 1 and s.decode[0].inbox.empty()
        assert s.dispatcher.limits() is not None, "the other pair serves"


@play
async def test_without_an_unbroken_pair_there_are_no_limits_until_the_trial(folder: Path) -> None:
    async with stage(folder, breaker_failures=2, max_attempts=1) as s:
        await broken(s)
        await until(lambda: s.dispatcher.limits() is None)
        with pytest.raises(NoWorkers):
            await s.ask()
        breaker = s.dispatcher._workers.decode[0].breaker
        breaker._clock = lambda: time.monotonic() + FIRST
        await until(lambda: s.dispatcher.limits() is not None)  # else nobody would send its trial
        trial = s.ask("trial")
        request = await s.decode[0].next(DecodeRequest)
        with pytest.raises(NoWorkers):
            await s.ask("second")
        s.decode[0].send(result_of(request))
        await trial
        assert breaker.state == "closed"
        after = s.ask("after")
        await answered(s.decode[0])
        await after


@play
async def test_a_hand_over_that_breaks_many_at_once_opens_no_breaker(folder: Path) -> None:
    """As when a prefill worker dies under load: the decode worker reports every one of its requests."""
    async with stage(folder, 1, 2, breaker_failures=2, max_attempts=1) as s:
        s.decode[1].die()
        await until(lambda: not s.dispatcher.workers()[2].alive)
        asked = [s.ask(f"r{number}") for number in range(5)]
        requests = [await s.decode[0].next(DecodeRequest) for _ in asked]
        for request in requests:
            s.decode[0].send(Failed(request.id, "decode", "worker_lost", "the prefill worker died"))
        for answer in asked:
            with pytest.raises(WorkerLost):
                await answer
        assert all(state.usable for state in s.dispatcher.workers()[:2])


# --- workers that die ------------------------------------------------------------------------------------


async def commit(s: Stage, worker: PlayedWorker, request: DecodeRequest) -> None:
    """The search begins: from now on the decode worker can die of it."""
    worker.send(Committed(request.id))
    live = s.dispatcher._attempts._live
    await until(lambda: live[request.id].committed)


@play
async def test_a_request_that_workers_die_of_is_given_up_and_the_same_content_refused(folder: Path) -> None:
    async with stage(folder, 1, 5, max_attempts=5, crash_budget=2) as s:
        left = await those_left_of(s, s.decode, s.ask())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("router.dispatch.poison.TOGETHER", 0.0)  # it is a while later
            (last,) = await those_left_of(s, left, s.ask("the client tries again"))
        with pytest.raises(CrashedWorkers, match="refused for"):
            await s.ask("and again")
        assert last.inbox.empty() and s.idle
        other = s.ask("other", tokens=(4, 5))
        await answered(last)
        assert (await other).attempts == 1


async def those_left_of(
    s: Stage, decode: list[PlayedWorker], answer: "asyncio.Task[Outcome]"
) -> list[PlayedWorker]:
    """Two decode workers die of this request; the others."""
    for _ in range(2):
        await until(lambda: any(worker.inbox.qsize() for worker in s.decode))
        worker = next(worker for worker in s.decode if worker.inbox.qsize())
        await commit(s, worker, await worker.next(DecodeRequest))
        worker.die()
        decode = [other for other in decode if other is not worker]
    with pytest.raises(CrashedWorkers):
        await answer
    return decode


@play
async def test_prefill_workers_that_die_of_a_prompt_count_too(folder: Path) -> None:
    async with stage(folder, 3, 1, max_attempts=5, crash_budget=2) as s:
        answer = s.ask()
        for worker in s.prefill[:2]:
            await worker.next(PrefillRequest)
            worker.die()
        with pytest.raises(CrashedWorkers):
            await answer
        assert s.prefill[2].inbox.empty() and s.idle


@play
async def test_a_decode_worker_that_dies_before_the_search_is_not_counted(folder: Path) -> None:
    async with stage(folder, 1, 3, crash_budget=1) as s:
        answer = s.ask()
        for worker in s.decode[:2]:
            await worker.next(DecodeRequest)
            worker.die()
        await answered(s.decode[2])
        assert (await answer).attempts == 3


@play
async def test_the_neighbours_of_a_poison_are_all_answered(folder: Path) -> None:
    """One decode worker dies with six requests, the first of which kills whoever searches for it."""
    async with stage(folder, 1, 3, crash_budget=2) as s:
        poison, *innocent = await all_on_the_first(s, 6)
        s.decode[0].die()
        again = await s.decode[1].next(DecodeRequest)  # the poison, alone
        await commit(s, s.decode[1], again)
        neighbour = await s.decode[2].next(DecodeRequest)  # on the other worker that is left
        await asyncio.sleep(0.05)
        assert s.decode[1].inbox.empty() and s.decode[2].inbox.empty(), "all others wait"
        s.decode[1].die()
        with pytest.raises(CrashedWorkers):
            await poison
        s.decode[2].send(Committed(neighbour.id))
        s.decode[2].send(result_of(neighbour))
        for _ in innocent[1:]:
            await answered(s.decode[2])
            await asyncio.sleep(0)
        assert [(await answer).attempts for answer in innocent] == [2] * 5  # type: ignore[attr-defined]
        assert s.idle


@play
async def test_two_deaths_in_company_are_no_proof(folder: Path) -> None:
    """It was tried on two pairs at once, and both died, as they would if their other requests did that."""
    async with stage(folder, 1, 3, crash_budget=2) as s:
        answer = s.ask()
        await commit(s, s.decode[0], await s.decode[0].next(DecodeRequest))
        s.decode[0].mute = True
        await commit(s, s.decode[1], await s.decode[1].next(DecodeRequest))
        s.decode[0].die()
        s.decode[1].die()
        await answered(s.decode[2])
        assert (await answer).attempts == 3 and s.idle


@play
async def test_while_a_poison_request_is_tried_new_requests_go_elsewhere_if_they_can(folder: Path) -> None:
    async with stage(folder, 2, 3) as s:
        (poison,) = await all_on_the_first(s, 1)
        s.decode[0].die()
        again = await s.decode[1].next(DecodeRequest)
        new = s.ask("new", tokens=(9,))
        request = await s.decode[2].next(DecodeRequest)
        assert request.id.prefill != again.id.prefill
        s.decode[2].send(result_of(request))
        s.decode[1].send(result_of(again))
        await asyncio.gather(new, poison)


async def all_on_the_first(s: Stage, number: int) -> "list[asyncio.Task[object]]":
    """So many requests that decode worker 0 searches for; the others could not have them."""
    for worker in s.decode[1:]:
        other = msgspec.structs.replace(MODEL, dtype="bfloat16")
        worker.hello = msgspec.structs.replace(worker.hello, model=other)
    workers = s.dispatcher._workers.decode
    await until(lambda: all(w.hello is not None and w.hello.model != MODEL for w in workers[1:]))
    asked = []
    for rid in range(number):
        asked.append(s.ask(f"r{rid}", tokens=(rid + 1,), seconds=20.0))
        await commit(s, s.decode[0], await s.decode[0].next(DecodeRequest))
    for worker in s.decode[1:]:
        worker.hello = msgspec.structs.replace(worker.hello, model=MODEL)
    await until(lambda: all(w.hello is not None and w.hello.model == MODEL for w in workers))
    return asked  # type: ignore[return-value]


# --- workers that seem stuck -----------------------------------------------------------------------------


@play
async def test_a_silent_workers_request_is_tried_elsewhere_too_and_the_first_answer_counts(
    folder: Path,
) -> None:
    for winner in (1, 0):
        own = folder / str(winner)
        own.mkdir()
        async with stage(own, 1, 2) as s:
            answer = s.ask(tokens=(winner,))
            first = await s.decode[0].next(DecodeRequest)
            s.decode[0].mute = True
            second = await s.decode[1].next(DecodeRequest)
            assert first.id.request == second.id.request and second.id.attempt == 2
            both = {0: first, 1: second}
            s.decode[winner].send(result_of(both[winner]))
            assert (await answer).attempts == 2
            assert (await s.decode[1 - winner].next(Cancel)).id == both[1 - winner].id
            s.decode[1 - winner].send(result_of(both[1 - winner]))  # too late: nobody waits for it
            await asyncio.sleep(0.05)
            assert s.idle and s.dispatcher.live == 0
            assert s.decode[winner].inbox.empty(), "whoever answered is not cancelled"


@play
async def test_when_the_second_try_fails_the_first_is_still_waited_for(folder: Path) -> None:
    async with stage(folder, 1, 2, max_attempts=2) as s:
        answer = s.ask()
        first = await s.decode[0].next(DecodeRequest)
        s.decode[0].mute = True
        second = await s.decode[1].next(DecodeRequest)
        s.decode[1].send(Failed(second.id, "decode", "worker_lost", "broken"))
        await s.decode[1].next(Cancel)
        s.decode[0].send(result_of(first))
        await answer
        assert s.idle


@play
async def test_new_requests_shun_a_silent_worker(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        s.decode[0].mute = True
        await until(lambda: s.dispatcher._workers.decode[0].quiet)
        answer = s.ask()
        await answered(s.decode[1])
        await answer


@play
async def test_a_request_gets_one_second_try_and_of_all_a_tenth(folder: Path) -> None:
    async with stage(folder, 1, 3) as s:
        asked = await all_on_the_first(s, 12)
        hidden = [s.decode[1], s.decode[2]]
        s.decode[0].mute = True
        request = await hidden[0].next(DecodeRequest)
        for _ in range(5):
            hedge(s.dispatcher._tries.values(), 3.0, time.monotonic())
        hidden[0].mute = True
        await until(lambda: s.dispatcher._workers.decode[1].quiet)
        for _ in range(5):
            hedge(s.dispatcher._tries.values(), 3.0, time.monotonic())
        await asyncio.sleep(0.05)
        assert hidden[0].inbox.empty() and hidden[1].inbox.empty()
        hidden[0].send(result_of(request))
        assert (await asked[0]).attempts == 2  # type: ignore[attr-defined]
        await until(lambda: any(tries.hedged for tries in s.dispatcher._tries.values()))  # the next one may
        for answer in asked[1:]:
            answer.cancel()


COST = StepCost(fixed=0.0, per_token=1.0, per_pair=0.0)  # three tokens take 3 s, the one level 1 s


async def told(s: Stage, costs: list[StepCost]) -> None:
    """All workers, prefill first, say what their launches cost, and the router has heard it."""
    for worker, cost in zip([*s.prefill, *s.decode], costs, strict=True):
        worker.hello = msgspec.structs.replace(worker.hello, load=msgspec.structs.replace(LOAD, cost=cost))
    workers = list(s.dispatcher._workers)
    await until(lambda: [w.hello and w.hello.load.cost for w in workers] == costs)


@play
async def test_a_request_that_takes_longer_than_foreseen_is_tried_elsewhere_too(folder: Path) -> None:
    async with stage(folder, 2, 2) as s:
        await told(s, [COST] * 4)
        answer = s.ask(seconds=25.0)
        first = await s.decode[0].next(DecodeRequest)
        await s.prefill[0].next(PrefillRequest)
        now = time.monotonic()
        hedge(s.dispatcher._tries.values(), 3.0, now + 11.0)
        assert not any(tries.hedged for tries in s.dispatcher._tries.values())
        hedge(s.dispatcher._tries.values(), 3.0, now + 13.0)
        second = await s.decode[1].next(DecodeRequest)
        assert second.id.prefill != first.id.prefill
        s.decode[1].send(result_of(second))
        assert (await answer).attempts == 2
        await s.prefill[0].next(Cancel)
        assert s.idle


@play
async def test_no_second_try_that_could_not_be_in_time(folder: Path) -> None:
    async with stage(folder, 2, 2) as s:
        slow = StepCost(0.0, 50.0, 0.0)
        await told(s, [COST, slow, COST, slow])
        answer = s.ask(seconds=25.0)
        await s.decode[0].next(DecodeRequest)
        s.dispatcher._attempts.admission.tried_at = math.inf
        hedge(s.dispatcher._tries.values(), 3.0, time.monotonic() + 13.0)
        await asyncio.sleep(0.05)
        assert s.decode[1].inbox.empty() and not any(tries.hedged for tries in s.dispatcher._tries.values())
        answer.cancel()


# --- batch work ------------------------------------------------------------------------------------------


@play
async def test_batch_work_that_made_room_is_tried_again_as_often_as_it_takes(folder: Path) -> None:
    """On the same pair, also after its prompt has arrived; it counts as no attempt that failed."""
    async with stage(folder, max_attempts=2) as s:
        answer = s.ask(priority=-BATCH)
        for number in range(4):
            request = await s.decode[0].next(DecodeRequest)
            assert request.priority == -BATCH
            if number % 2:
                s.decode[0].send(Committed(request.id))
                await asyncio.sleep(0.02)
                s.prefill[0].send(Failed(request.id, "prefill", "preempted", "online work"))
            else:
                s.decode[0].send(Failed(request.id, "decode", "preempted", "online work"))
            await s.decode[0].next(Cancel)
        await answered(s.decode[0])
        assert (await answer).attempts == 5 and s.idle


# --- workers that nothing can be sent to -----------------------------------------------------------------


def deaf(message: Message) -> bool:
    """Nothing can be sent."""
    return False


@play
async def test_who_cannot_be_reached_costs_the_partner_no_try(folder: Path) -> None:
    """A machine with a pair of workers ends, and our links have not heard of it: three tries are enough."""
    async with stage(folder, 2, 2) as s:
        workers = {worker.incarnation: worker for worker in s.dispatcher._workers}
        for worker in (workers[10], workers[21]):
            worker.send = deaf  # type: ignore[method-assign]
        answer = s.ask()
        first = await s.decode[0].next(DecodeRequest)
        assert first.id.prefill == 10, "the pair of one that is gone and of one that is not"
        await s.decode[0].next(Cancel)
        second = await answered(s.decode[0])
        assert (second.id.prefill, second.id.decode) == (11, 20)
        assert (await answer).attempts == 2
        assert workers[10].alive and workers[21].alive, "nobody has told the router yet"
