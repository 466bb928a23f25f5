"""Workers that come and go while the router runs, played over real sockets."""

import asyncio
import gc
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from played_workers import VIEW, PlayedWorker, Stage, play, result_of, stage, until
from psutil import Process

from router.dispatch.dispatcher import Dispatcher
from router.http.metrics import RequestMetrics
from router.workers.following import check_named, source_of
from router.workers.roster import LOOK
from xgr_runtime.catalog import Catalogs
from xgr_runtime.config import RouterConfig
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import BadRequest, ConfigError, DuplicateWorker, NotFound, NoWorkers
from xgr_runtime.wire.messages import STOPPING, Committed, DecodeRequest, PrefillRequest, Role


def joined(s: Stage, folder: Path, role: Role, number: int) -> PlayedWorker:
    """One more worker, which the router does not know yet."""
    worker = PlayedWorker(f"ipc://{folder}/more-{role}-{number}", role, number)
    (s.prefill if role == "prefill" else s.decode).append(worker)
    return worker


def named(worker: PlayedWorker) -> WorkerAddress:
    return WorkerAddress(worker.hello.role, worker.address)


def addresses(s: Stage) -> set[str]:
    return {state.address for state in s.dispatcher.workers()}


def usable(s: Stage, worker: PlayedWorker) -> bool:
    return any(state.usable and state.address == worker.address for state in s.dispatcher.workers())


def write(path: Path, *workers: PlayedWorker) -> None:
    """As it is done right: a whole file takes the place of another."""
    lists: dict[str, list[str]] = {"prefill": [], "decode": []}
    for worker in workers:
        lists[worker.hello.role].append(worker.address)
    path.with_suffix(".new").write_text(json.dumps(lists))
    path.with_suffix(".new").replace(path)


async def answered(s: Stage, worker: PlayedWorker, rid: str = "r") -> None:
    """A request that goes to this decode worker, and is answered by it."""
    answer = s.ask(rid)
    request = await worker.next(DecodeRequest)
    worker.send(Committed(request.id))
    worker.send(result_of(request))
    assert (await answer).attempts == 1


@play
async def test_one_that_is_added_serves(folder: Path) -> None:
    async with stage(folder, 1, 0) as s:
        with pytest.raises(NoWorkers):
            await s.ask()
        late = joined(s, folder, "decode", 30)
        state = s.dispatcher.add_worker(named(late))
        assert not state.alive and "has not answered yet" in state.problem
        await until(lambda: usable(s, late))
        await answered(s, late)


@play
async def test_one_that_is_removed_finishes_what_it_has_and_gets_no_more(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        answer = s.ask("first")
        old, other = s.decode
        request = await old.next(DecodeRequest)
        removed = s.dispatcher.remove_worker("decode-20")
        assert removed.leaving and not removed.usable and "removed" in removed.problem
        later = [s.ask(rid) for rid in ("a", "b", "c")]  # more than the other one has, too
        requests = [await other.next(DecodeRequest) for _ in later]
        for each in requests:
            other.send(Committed(each.id))
            other.send(result_of(each))
        assert [found.attempts for found in await asyncio.gather(*later)] == [1, 1, 1]
        assert old.address in addresses(s) and old.inbox.empty()
        assert s.dispatcher.remove_worker("decode-20").leaving, "twice is once"
        old.send(Committed(request.id))
        old.send(result_of(request))
        assert (await answer).attempts == 1
        await until(lambda: old.address not in addresses(s))
        assert s.idle


@play
async def test_a_prefill_worker_leaves_once_its_prompts_have_arrived(folder: Path) -> None:
    async with stage(folder, 2, 1) as s:
        answer = s.ask()
        await s.prefill[0].next(PrefillRequest)
        request = await s.decode[0].next(DecodeRequest)
        s.dispatcher.remove_worker(s.prefill[0].address)
        s.decode[0].send(Committed(request.id))
        await until(lambda: s.prefill[0].address not in addresses(s))
        s.decode[0].send(result_of(request))
        assert (await answer).attempts == 1 and s.idle


@play
async def test_one_that_dies_while_it_leaves_is_forgotten_and_its_request_is_not(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        answer = s.ask()
        await s.decode[0].next(DecodeRequest)
        s.dispatcher.remove_worker("decode-20")
        s.decode[0].die()
        request = await s.decode[1].next(DecodeRequest)
        s.decode[1].send(Committed(request.id))
        s.decode[1].send(result_of(request))
        assert (await answer).attempts == 2
        await until(lambda: s.decode[0].address not in addresses(s))


@play
async def test_one_that_is_added_again_while_it_leaves_stays(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        (worker,) = s.decode
        answer = s.ask("first")
        request = await worker.next(DecodeRequest)
        s.dispatcher.remove_worker("decode-20")
        assert s.dispatcher.limits() is None
        assert not s.dispatcher.add_worker(named(worker)).leaving
        worker.send(Committed(request.id))
        worker.send(result_of(request))
        await answer
        await asyncio.sleep(5 * LOOK)
        assert worker.address in addresses(s)
        await answered(s, worker, "second")


@play
async def test_one_that_was_forgotten_may_come_back(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        (worker,) = s.decode
        s.dispatcher.remove_worker("decode-20")
        await until(lambda: worker.address not in addresses(s))
        s.dispatcher.add_worker(named(worker))
        await until(lambda: usable(s, worker))
        await answered(s, worker)


@play
async def test_names_that_nobody_or_more_than_one_has(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        s.decode[1].hello = s.decode[0].hello
        await until(lambda: len({w.hello.worker for w in s.dispatcher.workers() if w.hello}) == 2)
        with pytest.raises(BadRequest, match="2 workers have the name"):
            s.dispatcher.remove_worker("decode-20")
        with pytest.raises(NotFound, match="decode-99"):
            s.dispatcher.remove_worker("decode-99")
        assert s.dispatcher.remove_worker(s.decode[1].address).address == s.decode[1].address


@play
async def test_addresses_that_cannot_be(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        before = addresses(s)
        for role, address, said in (
            ("decode", "udp://127.0.0.1:1", "ipc:// or tcp://"),
            ("decode", "tcp://10.0.0.1:1", "--curve-key"),
            ("decode", "ipc:///nowhere/at/all", "make the folder"),
            ("prefill", "http://10.0.0.1:1", "http://127.0.0.1:PORT"),
        ):
            with pytest.raises(BadRequest, match=said) as raised:
                s.dispatcher.add_worker(WorkerAddress(role, address))  # type: ignore[arg-type]
            assert raised.value.param == "address"
        with pytest.raises(DuplicateWorker, match="is there as decode worker"):
            s.dispatcher.add_worker(WorkerAddress("prefill", s.decode[0].address))
        assert addresses(s) == before


@play
async def test_a_file_adds_and_removes(folder: Path) -> None:
    file = folder / "workers.json"
    folder.chmod(0o700)
    one, two = (PlayedWorker(f"ipc://{folder}/{number}", "decode", number) for number in (31, 32))
    write(file, one)
    async with stage(folder, 1, 1, workers_file=str(file)) as s:
        s.decode += [one, two]
        assert usable(s, one)
        write(file, one, two)
        await until(lambda: usable(s, two))
        write(file, two)
        await until(lambda: one.address not in addresses(s))
        write(file)
        await until(lambda: "names no worker" in s.dispatcher.discovery_problem)
        assert usable(s, two)
        write(file, two)
        await until(lambda: not s.dispatcher.discovery_problem)


@play
async def test_nothing_is_left_of_workers_that_came_and_went(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        late = joined(s, folder, "decode", 30)
        absent = [WorkerAddress("prefill", f"ipc://{folder}/absent-{number}") for number in range(19)]
        metrics = RequestMetrics(lambda: 0, s.dispatcher.workers)
        before = addresses(s)

        async def come_and_go() -> None:
            for worker in (named(late), *absent):
                s.dispatcher.add_worker(worker)
            await until(lambda: usable(s, late))
            for worker in (named(late), *absent):
                s.dispatcher.remove_worker(worker.address)
            await until(lambda: addresses(s) == before)

        def held() -> tuple[int, ...]:
            series = len(metrics.render().splitlines())
            return Process().num_fds(), len(asyncio.all_tasks()), series, len(list(s.dispatcher._workers))

        await come_and_go()  # what is opened once
        await asyncio.sleep(0.2)
        first = held()
        for _ in range(10):
            await come_and_go()
        gc.collect()
        await until(lambda: all(now <= then for now, then in zip(held(), first, strict=True)))


@play
async def test_a_file_that_is_lost_or_bad_takes_nobody_away(folder: Path) -> None:
    async with stage(folder, 1, 0) as s:
        worker = joined(s, folder, "decode", 30)
        following = s.dispatcher._following
        following.follow([named(worker)])
        kept = addresses(s)
        for bad in (
            [],  # would leave no decode worker
            [named(worker), WorkerAddress("decode", "tcp://10.0.0.1:1")],
            [WorkerAddress("decode", f"ipc://{folder}/fine"), WorkerAddress("prefill", "nothing")],
            [WorkerAddress("decode", "tcp://127.0.0.1:*")],
        ):
            with pytest.raises(ConfigError):
                following.follow(bad)
            assert addresses(s) == kept
            assert not any(state.leaving for state in s.dispatcher.workers())
        following.follow([WorkerAddress("decode", f"ipc://{folder}/fine")])
        await until(lambda: worker.address not in addresses(s))


@play
async def test_what_was_done_by_hand_outweighs_the_file(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        by_file, by_hand = joined(s, folder, "decode", 30), joined(s, folder, "decode", 31)
        following = s.dispatcher._following
        following.follow([named(by_file), named(by_hand)])
        s.dispatcher.add_worker(named(by_hand))
        s.dispatcher.remove_worker(by_file.address)
        await until(lambda: by_file.address not in addresses(s))
        following.follow([named(by_file)])
        assert by_file.address not in addresses(s), "it is named as before"
        assert by_hand.address in addresses(s), "it was added by hand, too"
        following.follow([])
        following.follow([named(by_file)])
        assert by_file.address in addresses(s), "it is named anew"
        assert not any(state.leaving for state in s.dispatcher.workers())


@play
async def test_a_worker_that_changes_its_role_leaves_first(folder: Path) -> None:
    async with stage(folder, 1, 1) as s:
        worker = joined(s, folder, "decode", 30)
        following = s.dispatcher._following
        following.follow([named(worker)])
        with pytest.raises(ConfigError, match="remove it first"):
            following.follow([WorkerAddress("prefill", worker.address)])
        await until(lambda: worker.address not in addresses(s))
        following.follow([WorkerAddress("prefill", worker.address)])
        assert worker.address in addresses(s)


def of(**settings: Any) -> RouterConfig:
    return RouterConfig(model_path="m", catalog="c", **settings)


@pytest.mark.parametrize(
    ("settings", "content", "ends"),
    [
        ({}, None, True),
        ({}, "no list", True),
        ({}, '{"prefill": ["ipc://%s/p"], "decode": []}', False),
        ({"prefill": ["ipc://%s/p"], "ready_fd": 9}, None, True),
        ({"prefill": ["ipc://%s/p"], "decode": ["ipc://%s/d"]}, None, True),
        ({"prefill": ["ipc://%s/p"], "decode": ["ipc://%s/d"], "ready_fd": 9}, None, False),
    ],
    ids=["missing", "bad", "half a pair", "half a pair, again", "a pair", "a pair, again"],
)
def test_a_start_with_and_without_a_good_file(
    tmp_path: Path, settings: dict[str, Any], content: str | None, ends: bool
) -> None:
    tmp_path.chmod(0o700)
    if content is not None:
        (tmp_path / "w").write_text(content.replace("%s", str(tmp_path)))
    here = json.loads(json.dumps(settings).replace("%s", str(tmp_path)))
    config = of(workers_file=str(tmp_path / "w"), **here)

    async def start() -> None:
        dispatcher = Dispatcher(config, Catalogs(VIEW))
        try:
            dispatcher.start()
        finally:
            await dispatcher.stop()

    with pytest.raises(ConfigError, match=str(tmp_path)) if ends else nullcontext():
        asyncio.run(start())


def test_somebody_has_to_name_workers() -> None:
    for settings, said in (({}, "--prefill"), ({"prefill": ["ipc:///r/p"]}, "--decode")):
        with pytest.raises(ConfigError, match=f"{said} names no worker"):
            check_named(of(**settings))
    check_named(of(workers_file="w"))
    check_named(of(kubernetes_selector="app=shop"))


def test_workers_are_named_by_one_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        source_of(of(workers_file="w", kubernetes_selector="a=b"))
    with pytest.raises(ConfigError, match="--kubernetes-api"):
        source_of(of(kubernetes_selector="a=b", kubernetes_api="http://10.0.0.1"))
    assert source_of(of()) is None


@play
async def test_a_router_begins_without_its_cluster_and_says_why(folder: Path) -> None:
    settings = {"kubernetes_selector": "app=shop", "kubernetes_account": str(folder / "none")}
    async with stage(folder, 0, 0, **settings) as s:
        await until(lambda: f"{folder}/none/" in s.dispatcher.discovery_problem)
        assert not s.dispatcher.workers()


@play
async def test_a_worker_that_stops_gets_nothing_more_and_keeps_what_it_has(folder: Path) -> None:
    async with stage(folder, 1, 2) as s:
        ask = s.ask("r")
        first, second = s.decode
        request = await first.next(DecodeRequest)
        first.hello = replace(first.hello, load=replace(first.hello.load, counters={STOPPING: 1.0}))
        await until(lambda: not usable(s, first))
        state = next(one for one in s.dispatcher.workers() if one.address == first.address)
        assert state.alive and "stopping" in state.problem
        await answered(s, second, "other")
        first.send(Committed(request.id))
        first.send(result_of(request))
        assert (await ask).attempts == 1
