"""Who is offered which version, and when it is in use: played workers, no sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from made_catalogs import build_from_arrays
from msgspec.structs import replace
from played_workers import LOAD, MODEL
from small_catalogs import example

from router.catalogs import publisher
from router.catalogs.publisher import Publisher
from router.catalogs.publishing import Prepared
from router.catalogs.shelf import BaseFile, ChainStep, Shelf
from router.catalogs.writer import Writer
from router.workers.worker import Worker
from xgr_runtime.catalog import Catalog, Catalogs, CatalogView, Scoring
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.store import Store
from xgr_runtime.errors import BadRequest, CatalogError, DeadlineExceeded, Draining, NotFound, OtherVersion
from xgr_runtime.wire.messages import (
    MOST_INLINE,
    PART_BYTES,
    PROTOCOL,
    CatalogAsk,
    CatalogHeld,
    CatalogOffer,
    CatalogPart,
    Limits,
    Message,
    WorkerHello,
)

FIRST = example()


class Logged(logging.Handler):
    """What the publisher logs in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Logged:
        publisher.log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        publisher.log.removeHandler(self)


class PlayedWorker(Worker):
    """Takes every offer in at once, unless it is `slow`, or has a `problem_to_tell`."""

    def __init__(self, name: str, catalogs: list[str]) -> None:
        super().__init__(f"ipc://{name}", "decode", lambda *_: None, lambda *_: None)
        limits = Limits(64, 64)
        self.hello = WorkerHello(PROTOCOL, "decode", name, 7, MODEL, "", catalogs, limits, LOAD)
        self.alive = True
        self.slow = False
        self.problem_to_tell = ""
        self.broken = False
        self.sent: list[Message] = []
        self.publisher: Publisher | None = None

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def flush_cache(self) -> int:
        return 0

    async def refresh(self) -> None:
        pass

    @property
    def offers(self) -> list[CatalogOffer]:
        return [message for message in self.sent if isinstance(message, CatalogOffer)]

    def send(self, message: Message) -> bool:
        self.sent.append(message)
        if isinstance(message, CatalogOffer) and not self.slow:
            asyncio.get_running_loop().call_soon(self.answer, message)
        return True

    def answer(self, offer: CatalogOffer) -> None:
        assert self.publisher is not None
        held = CatalogHeld(offer.version, offer.number, self.problem_to_tell, self.broken)
        if self.broken and not offer.parent:
            held = CatalogHeld(offer.version, offer.number)
        self.publisher.heard(self, held)


class Scene:
    """A publisher and played workers, over a real store."""

    def __init__(self, folder: Path, patience: float = 0.2, workers: int = 2) -> None:
        self.store = Store(folder / "store", 4)
        if self.store.current is None:
            with self.store.writing():
                self.store.push(FIRST)
        writer = Writer(self.store, self._servable, folder, 1 << 20)
        self.catalogs = Catalogs(writer.open(self.store.chain(), 50))
        held = [writer.view.version]
        self.workers = [PlayedWorker(f"decode-{n}", list(held)) for n in range(workers)]
        self.publisher = Publisher(self.store, writer, self.catalogs, 5, lambda: self.workers, patience)
        for worker in self.workers:
            worker.publisher = self.publisher
        self.publisher.start()

    def _servable(self) -> Any:
        class Anything:
            def checked(self, catalog: Catalog) -> Catalog:
                return catalog

        return Anything()

    async def edit(self, wait: bool = True, key: str = "", expected: str = "", **batch: Any) -> Any:
        def make(view: CatalogView) -> Prepared:
            return Prepared(EditBatch(**batch))

        return await self.publisher.edit(make, key, expected, wait)

    async def __aenter__(self) -> Scene:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.publisher.stop()


def scene(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A test that runs in a loop of its own."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 20.0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@scene
async def test_a_version_is_in_use_once_all_workers_hold_it(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=5.0) as s:
        first = s.catalogs.newest.version
        s.workers[1].slow = True
        call = asyncio.create_task(s.edit(hide=("item-3",)))
        assert await soon(lambda: s.publisher.status().under_way is not None)
        await asyncio.sleep(0.1)
        assert s.catalogs.newest.version == first and not call.done(), "one of two lacks it"
        status = s.publisher.status()
        assert status.under_way is not None and list(status.under_way.waits_for) == ["ipc://decode-1"]
        s.workers[1].answer(s.workers[1].offers[-1])
        found = await call
        assert s.catalogs.newest.version == found.version != first and found.workers == 2
        assert s.store.current == found.version
        (step,) = s.workers[0].offers[-1].steps
        assert s.workers[0].offers[-1].parent == first and step.data and not step.whole
        assert found.version in s.workers[0].offers[-1].keeps and first in s.workers[0].offers[-1].keeps


@scene
async def test_whoever_is_too_slow_is_not_waited_for_and_comes_back(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=0.1) as s:
        s.workers[1].slow = True
        found = await s.edit(hide=("item-3",))
        assert found.workers == 1 and s.catalogs.newest.version == found.version
        assert "takes in catalog" in s.publisher.lag(s.workers[1]) and not s.publisher.lag(s.workers[0])
        assert list(s.publisher.status().behind) == ["ipc://decode-1"]
        s.workers[1].answer(s.workers[1].offers[-1])
        assert not s.publisher.lag(s.workers[1])
        assert (await s.edit(show=("item-3",), wait=False)).version == s.publisher.arriving.newest_kept


@scene
async def test_nobody_is_passed_where_no_worker_holds_it(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=0.03) as s:
        first = s.catalogs.newest.version
        for worker in s.workers:
            worker.slow = True
        with pytest.raises(DeadlineExceeded, match="is kept, and no worker has taken it in"):
            await s.edit(hide=("item-3",))
        assert s.catalogs.newest.version == first, "requests go on with what workers hold"
        assert s.store.current != first, "what was kept stays kept"


@scene
async def test_a_worker_that_says_why_it_cannot_is_not_waited_for(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=60.0) as s:
        s.workers[1].problem_to_tell = "it has other SIDs"
        found = await s.edit(put=(ItemRecord("more", (1, 2, 3)),))
        assert found.workers == 1 and "it has other SIDs" in s.publisher.lag(s.workers[1])


@scene
async def test_a_broken_chain_costs_the_whole_file_once(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=60.0) as s:
        assert await soon(lambda: all(worker.offers for worker in s.workers))
        await asyncio.sleep(0.01)  # both hold the first version
        s.workers[1].broken, s.workers[1].problem_to_tell = True, "version a came out as b"
        found = await s.edit(hide=("item-3",))
        assert found.workers == 1
        until = time.monotonic() + 5.0
        while s.publisher.lag(s.workers[1]) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        offer = s.workers[1].offers[-1]
        assert not offer.parent and offer.steps[0].whole and len(offer.steps) == 2
        assert not s.publisher.lag(s.workers[1]) and s.publisher.spreading.broken_chains == 1


@scene
async def test_scores_that_a_gpu_lacks_are_not_pushed_to_it(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        first, file = s.store.current, tmp_path / "next.xgr"
        sids = [[10 + i, 20, 30] for i in range(3)]
        build_from_arrays(["a", "b", "c"], sids, scoring=Scoring(repetition_penalty=1.5)).save(file)
        hello = s.workers[0].hello
        s.workers[0].hello = replace(hello, limits=Limits(64, 64, plain_scores=True))  # type: ignore[type-var]
        with pytest.raises(BadRequest, match=r"next\.xgr: its scoring has .* lack: leave them out"):
            await s.publisher.push(file, True)
        assert s.store.current == first == s.catalogs.newest.version
        s.workers[0].hello = hello
        await s.publisher.push(file, True)
        assert s.catalogs.newest.catalog.items == 3


@scene
async def test_refusals_change_nothing(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        first = s.store.current
        with pytest.raises(BadRequest, match="nobody"):
            await s.edit(hide=("nobody",))
        with pytest.raises(OtherVersion):
            await s.edit(expected="another", hide=("item-3",))
        with pytest.raises(NotFound):
            await s.publisher.rollback("unknown", True)
        with pytest.raises(NotFound, match="before this one"):
            await s.publisher.rollback(None, True)
        with pytest.raises(NotFound):
            await s.publisher.set_filter("none", None)
        (tmp_path / "bad.jsonl").write_text("{}\n")
        with pytest.raises(BadRequest):
            await s.publisher.push(tmp_path / "bad.jsonl", True)
        assert s.store.current == first == s.catalogs.newest.version
        nothing = await s.edit()
        assert nothing.version == first


@scene
async def test_a_key_is_used_once_also_by_the_next_router(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        once = await s.edit(key="k", hide=("item-3",))
        assert (await s.edit(key="k", hide=("item-3",))).version == once.version
        assert len(s.store.history()) == 2
    async with Scene(tmp_path) as s:
        assert s.catalogs.newest.version == once.version
        assert (await s.edit(key="k", hide=("item-3",))).version == once.version


@scene
async def test_push_rollback_and_compaction(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        hidden = await s.edit(hide=("item-3",))
        source = tmp_path / "next.jsonl"
        rows = [{"item": f"n{i}", "sid": [10 + i % 5, 20 + i // 5, 30]} for i in range(20)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pushed = await s.publisher.push(source, True)
        assert s.catalogs.newest.catalog.items == 20
        assert s.workers[0].offers[-1].steps[0].whole and not s.workers[0].offers[-1].parent
        back = await s.publisher.rollback(None, True)
        assert back.version == hidden.version
        assert s.catalogs.newest.catalog.visible is not None
        forth = await s.publisher.rollback(pushed.version, True)
        assert forth.version == pushed.version
        await s.publisher.rollback(hidden.version, True)
        async with s.publisher._changing("compact"):
            made = await s.publisher._in_thread(s.publisher._writer.compact)
            s.publisher._adopt(made, time.monotonic())
        await s.edit(show=("item-3",))
        assert not s.workers[0].offers[-1].steps[0].whole, "workers compact for themselves"
        assert s.publisher.spreading.shelf.base.version == made[-1].view.version
        assert s.catalogs.newest.catalog.visible is None and s.catalogs.newest.catalog.items == 200


async def soon(until: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it is so within these seconds."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    return until()


@scene
async def test_a_long_chain_is_compacted_once_it_is_quiet(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publisher, "COMPACT_AFTER", 3)
        patched.setattr(publisher, "QUIET", 0.0)
        async with Scene(tmp_path) as s:
            for name in ("item-1", "item-2"):
                await s.edit(remove=(name,))
            await asyncio.sleep(0.6)
            assert len(s.store.history()) == 3, "two batches are no long chain"
            patched.setattr(publisher, "QUIET", 3600.0)
            last = await s.edit(hide=("item-3",))
            await asyncio.sleep(0.6)
            assert last.version == s.store.current, "and this one is not quiet"
            patched.setattr(publisher, "QUIET", 0.0)
            shelf = s.publisher.spreading
            assert await soon(lambda: not shelf.shelf.batches)
            assert s.store.current == s.catalogs.newest.version == shelf.shelf.base.version
            assert s.store.history()[0].note == "compact" and s.catalogs.newest.catalog.slots == 198
            assert s.workers[0].offers[-1].steps == [] or not s.workers[0].offers[-1].steps[0].whole
            assert s.store.chain().batches == (), "nor does a start apply them again"
            assert not (await s.edit(remove=())).changed


@scene
async def test_many_items_that_came_are_a_long_chain_and_a_busy_one_is_compacted_too(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(publisher, "COMPACT_ITEMS", 2)
        patched.setattr(publisher, "QUIET", 3600.0)
        async with Scene(tmp_path) as s:
            for n in range(publisher.NEVER_QUIET):
                assert s.publisher.spreading.shelf.base.version == FIRST.version
                await s.edit(put=tuple(ItemRecord(f"more-{n}-{m}", (1, 2, 3)) for m in range(2)))
            assert await soon(lambda: not s.publisher.spreading.shelf.batches)
            catalog = s.catalogs.newest.catalog
            assert catalog.built_slots == catalog.slots == 216 and not catalog.later.ids


@scene
async def test_what_cannot_be_compacted_is_said_once(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched, Logged() as logged:
        patched.setattr(publisher, "COMPACT_AFTER", 1)
        patched.setattr(publisher, "QUIET", 0.0)
        async with Scene(tmp_path) as s:
            names = tuple(f"item-{n}" for n in range(200))
            empty = await s.edit(remove=names)
            assert await soon(lambda: bool(logged.lines))
            await asyncio.sleep(0.7)  # three more looks
            assert len(logged.lines) == 1 and "no item left" in logged.lines[0]
            assert s.store.current == empty.version
            await s.edit(put=(ItemRecord("more", (1, 2, 3)),))
            assert await soon(lambda: not s.publisher.spreading.shelf.batches)
            assert s.catalogs.newest.catalog.items == 1


@scene
async def test_what_is_current_already_is_no_change(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        FIRST.save(tmp_path / "same.xgr")
        s.store.chain().file.unlink()
        for same in (await s.publisher.push(tmp_path / "same.xgr", True), await s.edit(key="k")):
            assert (same.version, same.changed) == (FIRST.version, False)
        assert s.store.chain().file.read_bytes() == (tmp_path / "same.xgr").read_bytes(), "it is put back"
        assert not (await s.publisher.rollback(FIRST.version, True)).changed
        assert not (await s.edit(key="k")).changed, "nor at the second time"
        assert len(s.store.history()) == 1 and not any(offer.steps for offer in s.workers[0].offers)
        hidden = await s.edit(hide=("item-3",))
        assert hidden.changed and (await s.publisher.push(tmp_path / "same.xgr", True)).changed
        assert len(s.store.history()) == 3


@scene
async def test_what_a_worker_may_have_let_go_of_is_waited_for_again(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=5.0) as s:
        first = s.catalogs.newest.version
        for name in ("item-3", "item-4"):
            hidden = await s.edit(hide=(name,))
        for worker in s.workers:
            assert worker.hello is not None and first in worker.hello.catalogs, "as it said last"
            worker.slow = True
        call = asyncio.create_task(s.publisher.rollback(s.store.history()[1].version, True))
        await asyncio.sleep(0.1)
        assert s.catalogs.newest.version == hidden.version and not call.done()
        for worker in s.workers:
            worker.answer(worker.offers[-1])
        assert (await call).version == s.catalogs.newest.version != hidden.version


@scene
async def test_another_router_of_the_store_is_followed(tmp_path: Path) -> None:
    async with Scene(tmp_path) as a, Scene(tmp_path) as b:
        one = await a.edit(hide=("item-3",))
        other = await b.edit(hide=("item-4",))
        assert other.version != one.version, "it was made on what the first had written"
        until = time.monotonic() + 1.0
        while a.catalogs.newest.version != other.version and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert a.catalogs.newest.version == other.version
        await a.publisher.set_filter("few", "stock < 5")
        await asyncio.sleep(0.5)
        assert b.publisher.filters() == {"few": "stock < 5"}


@scene
async def test_parts_are_read_from_the_file_and_from_long_batches(tmp_path: Path) -> None:
    async with Scene(tmp_path) as s:
        worker = s.workers[0]
        await s.edit(hide=("item-3",))
        size, got = s.publisher.spreading.shelf.base.size, b""
        while len(got) < size:
            s.publisher.heard(worker, CatalogAsk(FIRST.version, len(got)))
            part = worker.sent[-1]
            assert isinstance(part, CatalogPart) and part.data and len(part.data) <= PART_BYTES
            got += part.data
        (tmp_path / "copy.xgr").write_bytes(got)
        assert Catalog.open(tmp_path / "copy.xgr").version == FIRST.version
        s.publisher.heard(worker, CatalogAsk("unknown", 0))
        assert worker.sent[-1].data == b""  # type: ignore[attr-defined]


def test_a_chain_is_offered_from_where_a_worker_is(tmp_path: Path) -> None:
    view, steps = CatalogView(FIRST), []
    for name in ("item-1", "item-2", "item-3"):
        view = edited(view, EditBatch(hide=(name,)))
        steps.append(ChainStep(view.version, b"x" * (PART_BYTES if name == "item-2" else 9)))
    shelf = Shelf(BaseFile(FIRST.version, FIRST.seal()), tuple(steps))
    versions = [step.version for step in shelf.lacking([]).steps]
    assert versions == [FIRST.version, *(step.version for step in steps)]
    assert shelf.lacking([FIRST.version]).parent == FIRST.version
    assert len(shelf.lacking([FIRST.version, steps[1].version, "other"]).steps) == 1
    assert shelf.lacking([view.version]).steps == []
    many = Shelf(shelf.base, tuple(ChainStep(str(n), b"x" * PART_BYTES) for n in range(9)))
    assert sum(len(step.data) for step in many.lacking([]).steps) == MOST_INLINE, "the rest is asked for"


@scene
async def test_a_router_that_stops_says_what_is_kept(tmp_path: Path) -> None:
    async with Scene(tmp_path, patience=60.0) as s:
        for worker in s.workers:
            worker.slow = True
        call = asyncio.create_task(s.edit(hide=("item-3",)))
        while s.publisher.arriving.newest_kept == FIRST.version:
            await asyncio.sleep(0.01)
        s.publisher.drain()
        with pytest.raises(Draining, match=f"version {s.publisher.arriving.newest_kept} is kept"):
            await call
        with pytest.raises(Draining):
            await s.edit(show=("item-3",))
        assert s.store.current == s.publisher.arriving.newest_kept != FIRST.version


def test_a_store_that_leads_elsewhere_is_not_served(tmp_path: Path) -> None:
    with Store(tmp_path / "store", 4) as store:
        with store.writing():
            store.push(FIRST)
            store.append(FIRST.version, "0" * 32, b"\x81\xa4hide\x91\xa6item-3")
        with pytest.raises(CatalogError, match="leads to"):
            Writer(store, lambda: None, tmp_path, 0).open(store.chain(), None)  # type: ignore[arg-type,return-value]
