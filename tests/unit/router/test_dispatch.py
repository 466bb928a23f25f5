"""The dispatcher against workers that a test plays itself, over real sockets."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from played_workers import LOAD, MODEL, VIEW, Stage, play, result_of, stage, until

from router.http.control import no_pair
from router.job import WorkerState
from xgr_runtime.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    Draining,
    DuplicateRequest,
    InternalError,
    InvalidLogits,
    NoWorkers,
    Overloaded,
    WorkerLost,
)
from xgr_runtime.wire.messages import (
    PROTOCOL,
    CacheFlushed,
    Cancel,
    Committed,
    DecodeRequest,
    Failed,
    FlushCache,
    Limits,
    PrefillRequest,
    StepCost,
)


@play
async def test_both_workers_get_their_part_and_the_answer_comes_back(folder: Path) -> None:
    async with stage(folder) as s:
        answer = s.ask()
        decode, prefill = await s.decode[0].next(DecodeRequest), await s.prefill[0].next(PrefillRequest)
        assert decode.id == prefill.id and (decode.id.prefill, decode.id.decode) == (10, 20)
        assert (
            decode.tokens == prefill.tokens
            and len(prefill.tokens) == 3 * 4
            and prefill.data_address == "ipc:///data"
        )
        assert s.dispatcher.live == 1
        s.decode[0].send(Committed(decode.id))
        s.decode[0].send(result_of(decode))
        outcome = await answer
        assert outcome.leaves.tolist() == [5, 3] and outcome.attempts == 1
        assert s.dispatcher.live == 0 and not any(w.in_flight for w in s.dispatcher.workers())
        await asyncio.sleep(0.05)
        assert s.prefill[0].inbox.empty() and s.decode[0].inbox.empty(), "nobody is cancelled after success"


@play
async def test_a_retry_has_a_new_number_and_another_pair(folder: Path) -> None:
    async with stage(folder, 2, 2) as s:
        answer = s.ask()
        first = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(Failed(first.id, "decode", "worker_lost", "broken"))
        await s.decode[0].next(Cancel)
        second = await s.decode[1].next(DecodeRequest)
        assert (first.id.attempt, second.id.attempt) == (1, 2) and first.id.request == second.id.request
        assert second.id.prefill != first.id.prefill
        s.decode[0].send(result_of(first))  # from an attempt that is over: ignored
        await asyncio.sleep(0.05)
        assert not answer.done()
        s.decode[1].send(result_of(second))
        assert (await answer).attempts == 2


@play
async def test_retries_end(folder: Path) -> None:
    async with stage(folder, max_attempts=2) as s:
        answer = s.ask()
        for _ in range(2):
            request = await s.decode[0].next(DecodeRequest)
            s.decode[0].send(Failed(request.id, "decode", "worker_lost", "broken"))
            await s.decode[0].next(Cancel)
        with pytest.raises(WorkerLost, match="broken"):
            await answer
        assert s.decode[0].inbox.empty()


@play
async def test_a_final_error_is_not_retried(folder: Path) -> None:
    async with stage(folder, 2, 2) as s:
        finals = [
            ("invalid_value", BadRequest),
            ("invalid_logits", InvalidLogits),
            ("unheard_of", InternalError),
        ]
        for code, kind in finals:
            answer = s.ask()
            request = await s.decode[0].next(DecodeRequest)
            s.decode[0].send(Failed(request.id, "decode", code, "no use"))
            with pytest.raises(kind, match="no use"):
                await answer
            await s.decode[0].next(Cancel)
        assert s.decode[1].inbox.empty()


@play
async def test_a_deadline_cancels_both_workers(folder: Path) -> None:
    async with stage(folder) as s:
        answer = s.ask(seconds=0.2)
        request = await s.decode[0].next(DecodeRequest)
        await s.prefill[0].next(PrefillRequest)
        with pytest.raises(DeadlineExceeded):
            await answer
        for worker in (s.decode[0], s.prefill[0]):
            assert (await worker.next(Cancel)).id == request.id


@play
async def test_abort_and_a_gone_client_cancel_both_workers(folder: Path) -> None:
    async with stage(folder) as s:
        for end in ("abort", "gone"):
            answer = s.ask(end)
            await s.decode[0].next(DecodeRequest)
            await s.prefill[0].next(PrefillRequest)
            assert s.dispatcher.abort(end) if end == "abort" else answer.cancel()
            with pytest.raises(Cancelled if end == "abort" else asyncio.CancelledError):
                await answer
            await s.decode[0].next(Cancel)
            await s.prefill[0].next(Cancel)
        assert not s.dispatcher.abort("abort"), "it is no longer live"


@play
async def test_a_full_house_and_a_duplicate_are_refused(folder: Path) -> None:
    async with stage(folder, max_live=2) as s:
        first, _ = s.ask("a"), s.ask("b")
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await s.ask("c")
        request = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(result_of(request))
        await first
        with pytest.raises(DuplicateRequest):
            await s.ask("b")
        again = s.ask("a")  # no longer live: free to use
        await s.decode[0].next(DecodeRequest)
        await s.decode[0].next(DecodeRequest)
        again.cancel()


@play
async def test_a_drain_lets_live_requests_end_and_refuses_new_ones(folder: Path) -> None:
    async with stage(folder) as s:
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        drained = asyncio.create_task(s.dispatcher.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(Draining):
            await s.ask("late")
        assert not drained.done()
        s.decode[0].send(result_of(request))
        assert (await answer).attempts == 1
        await drained


@play
async def test_what_is_live_when_the_drain_ends_may_be_tried_again(folder: Path) -> None:
    async with stage(folder, drain_timeout=0.1) as s:
        answer = s.ask()
        await s.decode[0].next(DecodeRequest)
        await s.dispatcher.drain()
        with pytest.raises(Draining):
            await answer
        await s.decode[0].next(Cancel)


@play
async def test_after_commit_the_prefill_worker_may_die(folder: Path) -> None:
    async with stage(folder) as s:
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(Committed(request.id))
        await until(lambda: not s.dispatcher.workers()[0].in_flight)
        s.prefill[0].die()
        await until(lambda: not s.dispatcher.workers()[0].alive)
        s.decode[0].send(result_of(request))
        assert (await answer).attempts == 1


@play
async def test_after_commit_the_prefill_worker_may_fail(folder: Path) -> None:
    """An SGLang server that dies then breaks the connection on which it would have said "done"."""
    async with stage(folder) as s:
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(Committed(request.id))
        await until(lambda: not s.dispatcher.workers()[0].in_flight)
        s.prefill[0].send(Failed(request.id, "prefill", "worker_lost", "it broke off"))
        await asyncio.sleep(0.05)
        s.decode[0].send(result_of(request))
        assert (await answer).attempts == 1


@play
async def test_a_worker_that_comes_back_as_another_is_a_lost_one(folder: Path) -> None:
    async with stage(folder, max_attempts=1) as s:
        answer = s.ask()
        await s.decode[0].next(DecodeRequest)
        s.decode[0].hello = msgspec.structs.replace(s.decode[0].hello, incarnation=99)
        with pytest.raises(WorkerLost, match="restarted"):
            await answer


@play
async def test_workers_that_do_not_fit_are_never_used(folder: Path) -> None:
    async with stage(folder) as s:
        for change in ({"model": msgspec.structs.replace(MODEL, dtype="bfloat16")}, {"catalogs": ["v2"]}):
            kept = s.decode[0].hello
            s.decode[0].hello = msgspec.structs.replace(kept, **change)
            await until(lambda: s.dispatcher.limits() is None)
            with pytest.raises(NoWorkers):
                await s.ask()
            s.decode[0].hello = kept
            await until(lambda: s.dispatcher.limits() == Limits(64, 8))


@pytest.mark.parametrize("held", [["v2"], [], ["v2", "v3"]], ids=str)
def test_a_decode_worker_with_another_catalog_says_so(held: list[str], tmp_path: Path) -> None:
    """Nothing is usable that no request can be sent to; its mate with the right catalog goes on."""

    async def run() -> None:
        async with stage(tmp_path, 1, 2) as s:
            s.decode[0].hello = msgspec.structs.replace(s.decode[0].hello, catalogs=held)
            await until(lambda: not s.dispatcher.workers()[1].usable)
            states = s.dispatcher.workers()
            assert [state.usable for state in states] == [True, False, True]
            assert f"this router {VIEW.version}:" in states[1].problem and all(
                name in states[1].problem for name in held
            )
            assert s.dispatcher.limits() is not None
            s.decode[1].hello = msgspec.structs.replace(s.decode[1].hello, catalogs=["v9"])
            await until(lambda: s.dispatcher.limits() is None)
            said = no_pair(s.dispatcher.workers())
            assert all(f"{state.address}: {state.problem}" in said for state in s.dispatcher.workers()[1:])

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("change", [{"protocol": PROTOCOL + 1}, {"role": "prefill"}], ids=str)
def test_a_worker_of_another_kind_says_why_it_is_not_used(tmp_path: Path, change: dict[str, Any]) -> None:
    async def run() -> None:
        async with stage(tmp_path) as s:
            s.decode[0].hello = msgspec.structs.replace(s.decode[0].hello, **change)
            await until(lambda: not s.dispatcher.workers()[1].usable)
            assert s.dispatcher.workers()[1].problem
            assert s.dispatcher.limits() is None

    asyncio.run(asyncio.wait_for(run(), 30))


@play
async def test_a_fresh_list_is_what_workers_say_now_and_waits_for_no_dead_one(folder: Path) -> None:
    async with stage(folder, prefill=2) as s:
        s.prefill[1].die()
        await until(lambda: not s.dispatcher.workers()[1].alive)
        for worker in (s.prefill[0], s.decode[0]):
            worker.hello = replace(worker.hello, load=replace(LOAD, pages_used=7))
        assert [pages_used(state) for state in s.dispatcher.workers()] == [LOAD.pages_used] * 3
        await s.dispatcher.refresh()
        assert [pages_used(state) for state in s.dispatcher.workers()] == [7, LOAD.pages_used, 7]


@play
async def test_a_fresh_list_waits_no_longer_than_the_silence(folder: Path) -> None:
    async with stage(folder, silence=0.3) as s:
        s.decode[0].mute = True
        await s.dispatcher.refresh()
        await until(lambda: not s.dispatcher.workers()[1].alive)


def pages_used(state: WorkerState) -> int:
    assert state.hello is not None
    return state.hello.load.pages_used


@play
async def test_a_flush_reaches_every_worker_and_waits_for_no_dead_one(folder: Path) -> None:
    async with stage(folder, prefill=2) as s:
        s.prefill[1].die()
        await until(lambda: not s.dispatcher.workers()[1].alive)
        flush = asyncio.create_task(s.dispatcher.flush())
        for worker, pages in ((s.prefill[0], 3), (s.decode[0], 4)):
            asked = await worker.next(FlushCache)
            worker.send(CacheFlushed(asked.number + 1, 99))  # of another call
            worker.send(CacheFlushed(asked.number, pages))
        first, dead, decode = await flush
        assert (first.pages, decode.pages, dead.pages) == (3, 4, 0)
        assert dead.problem and not first.problem and not decode.problem


@play
async def test_a_worker_that_dies_during_a_flush_is_not_waited_for(folder: Path) -> None:
    async with stage(folder) as s:
        flush = asyncio.create_task(s.dispatcher.flush())
        s.prefill[0].send(CacheFlushed((await s.prefill[0].next(FlushCache)).number, 3))
        await s.decode[0].next(FlushCache)
        s.decode[0].die()
        prefill, decode = await flush
        assert (prefill.pages, prefill.problem, decode.pages) == (3, "", 0)
        assert decode.problem and "no answer" not in decode.problem


@play
async def test_a_worker_that_does_not_answer_a_flush_is_named(folder: Path) -> None:
    async with stage(folder, silence=0.3) as s:
        flush = asyncio.create_task(s.dispatcher.flush())
        s.decode[0].send(CacheFlushed((await s.decode[0].next(FlushCache)).number, 3))
        prefill, decode = await flush
        assert "no answer" in prefill.problem and not decode.problem


@play
async def test_the_outcome_tells_what_was_cached(folder: Path) -> None:
    async with stage(folder) as s:
        answer = s.ask()
        request = await s.decode[0].next(DecodeRequest)
        s.decode[0].send(msgspec.structs.replace(result_of(request), cached_tokens=2))
        assert (await answer).cached_tokens == 2


COST = StepCost(fixed=0.0, per_token=1.0, per_pair=0.0)  # three tokens take 3 s, the one level 1 s


def knowing(stage: Stage) -> None:
    """Workers that say what their launches cost."""
    for worker in (stage.prefill[0], stage.decode[0]):
        worker.hello = msgspec.structs.replace(worker.hello, load=msgspec.structs.replace(LOAD, cost=COST))


async def told(stage: Stage) -> None:
    """Until the router has heard it."""
    await until(lambda: all(w.hello is not None and w.hello.load.cost for w in stage.dispatcher.workers()))


@play
async def test_what_would_be_late_is_refused_at_once_and_nothing_of_it_stays(folder: Path) -> None:
    async with stage(folder) as s:
        knowing(s)
        await told(s)
        accepted = s.ask("a", seconds=6.0)
        request = await s.decode[0].next(DecodeRequest)
        prompt = await s.prefill[0].next(PrefillRequest)
        assert prompt.after == 1.0 and prompt.priority == request.priority == 0
        with pytest.raises(Overloaded) as refused:
            await s.ask("b", seconds=7.0)
        assert refused.value.retry_after > 0 and s.decode[0].inbox.empty() and s.dispatcher.live == 1
        s.decode[0].send(Committed(request.id))
        s.decode[0].send(result_of(request))
        await accepted
        s.dispatcher._attempts.admission.tried_at = time.monotonic()  # else the idle pair would have its try
        with pytest.raises(DeadlineExceeded, match="4000 ms are needed"):
            await s.ask("c", seconds=3.0)
        again = s.ask("d", seconds=6.0)  # the books are empty
        await s.decode[0].next(DecodeRequest)
        again.cancel()


@play
async def test_lost_workers_aborts_and_gone_clients_leave_nothing_in_the_books(folder: Path) -> None:
    async with stage(folder, max_attempts=1) as s:
        knowing(s)
        await told(s)
        for end in ("abort", "gone", "failed", "late"):
            answer = s.ask(end, seconds=0.5 if end == "late" else 30.0)
            request = await s.decode[0].next(DecodeRequest)
            if end == "abort":
                s.dispatcher.abort(end)
            elif end == "gone":
                answer.cancel()
            elif end == "failed":
                s.decode[0].send(Failed(request.id, "decode", "worker_lost", "broken"))
            with pytest.raises((Cancelled, asyncio.CancelledError, WorkerLost, DeadlineExceeded)):
                await answer
            await s.decode[0].next(Cancel)
            assert not s.dispatcher._attempts.admission.backlogs
        answer = s.ask("lost")
        await s.decode[0].next(DecodeRequest)
        s.decode[0].die()
        with pytest.raises(WorkerLost):
            await answer
        assert not s.dispatcher._attempts.admission.backlogs


@play
async def test_a_prompt_returns_to_the_pair_that_holds_it(folder: Path) -> None:
    async with stage(folder, 2, 2) as s:
        tokens = [token % 100 for token in range(64 * 3)]
        for worker in (*s.prefill, *s.decode):
            worker.hello = msgspec.structs.replace(
                worker.hello, load=msgspec.structs.replace(LOAD, pages_cached=9)
            )
        await until(
            lambda: all(w.hello is not None and w.hello.load.pages_cached for w in s.dispatcher.workers())
        )
        for _ in range(3):
            answer = s.ask(tokens=tokens)
            request = await s.decode[0].next(DecodeRequest)
            assert request.id.prefill == 10
            s.decode[0].send(Committed(request.id))
            s.decode[0].send(result_of(request))
            await answer
        other = s.ask("other")
        busy = await s.decode[0].next(DecodeRequest)
        assert busy.id.prefill == 10, "by name, while both are idle"
        s.ask(tokens=tokens)
        assert (await s.decode[1].next(DecodeRequest)).id.prefill == 10, (
            "3 tokens of others weigh less than 128"
        )
        other.cancel()
