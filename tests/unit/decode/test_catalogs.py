"""Versions as a decode worker takes them in: from batches, in parts, from a router's memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import xxhash
from small_catalogs import example

from decode_worker.catalogs import PLACE_EVERY, CatalogUpdates, is_quick
from decode_worker.conditions import AT_ONCE, Conditions
from decode_worker.pulls import PATIENCE, Pull
from xgr_kernels.trie import LeafFilter
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.errors import CatalogError
from xgr_runtime.kv.shared_memory import this_process
from xgr_runtime.wire.messages import (
    PART_BYTES,
    AttemptId,
    CatalogAsk,
    CatalogHeld,
    CatalogOffer,
    CatalogPart,
    CatalogStep,
    DecodeRequest,
    HostRegion,
    Message,
)

FIRST, OTHER = example(), example(items=90)
FILE = OTHER.seal()
FILE.seek(0)
BYTES = FILE.read()
A, B = 11, 12  # routers


class PlayedControl:
    """Routers that listen."""

    def __init__(self) -> None:
        self.uses_of: dict[int, list[str]] = {A: [FIRST.version], B: [FIRST.version]}
        self.sent: list[tuple[int, Message]] = []

    @property
    def routers(self) -> list[int]:
        return list(self.uses_of)

    @property
    def used_catalogs(self) -> frozenset[str]:
        return frozenset(version for used in self.uses_of.values() for version in used)

    def uses(self, router: int, catalogs: Any) -> None:
        if router in self.uses_of:
            self.uses_of[router] = list(catalogs)

    def send(self, router: int, message: Message) -> bool:
        self.sent.append((router, message))
        return True


class PlayedReaders:
    """Where searches read versions: there is room, or not, and one takes some turns to come there."""

    def __init__(self) -> None:
        self.room, self.turns = True, 0
        self.placed: list[str] = []
        self.ready: list[int] = []  # bitmaps beside each
        self.kept: list[str] = []
        self.problem = ""

    def place(self, view: CatalogView, ready: Sequence[LeafFilter]) -> bool:
        if self.problem:
            raise CatalogError(self.problem)
        self.turns -= 1
        if not self.room or self.turns > 0:
            return False
        self.placed.append(view.version)
        self.ready.append(len(ready))
        return True

    def keep(self, views: Sequence[CatalogView]) -> None:
        self.kept = [view.version for view in views]


class Scene:
    def __init__(self, maps_memory: bool = False) -> None:
        self.catalogs = Catalogs(CatalogView(FIRST.for_vocabulary(50)))
        self.control = PlayedControl()
        self.counters: dict[str, float] = defaultdict(float)
        self.problem = ""
        self.readers = PlayedReaders()
        self.updates = CatalogUpdates(
            self.catalogs,
            self.control,  # type: ignore[arg-type]
            lambda _: self.problem,
            self.counters,
            self.readers,
            maps_memory,
        )
        self.now = 100.0

    def offer(self, offer: CatalogOffer) -> None:
        self.updates.take(offer, self.now)
        self.updates.turn(self.now)

    def turn(self, seconds: float = 0.0) -> list[tuple[int, Message]]:
        """What is said next."""
        self.now += seconds
        before = len(self.control.sent)
        self.updates.turn(self.now)
        return self.control.sent[before:]

    def held(self) -> CatalogHeld:
        """The next answer to router A; work in a thread is waited for."""
        end = time.monotonic() + 10.0
        while time.monotonic() < end:
            found = [m for router, m in self.control.sent if router == A and isinstance(m, CatalogHeld)]
            if found:
                self.control.sent.clear()
                return found[-1]
            time.sleep(0.002)
            self.updates.turn(self.now)
        raise AssertionError("no answer")


def step(view: CatalogView, batch: EditBatch, inline: bool = True) -> tuple[CatalogView, CatalogStep, bytes]:
    after, data = edited(view, batch), msgspec.msgpack.encode(batch)
    digest = xxhash.xxh3_64_intdigest(data)
    return after, CatalogStep(after.version, False, len(data), digest, data if inline else b""), data


def whole(digest: int | None = None, memory: HostRegion | None = None) -> CatalogStep:
    found = xxhash.xxh3_64_intdigest(BYTES) if digest is None else digest
    return CatalogStep(OTHER.version, True, len(BYTES), found, memory=memory)


def part(ask: CatalogAsk, data: bytes = BYTES, router: int = A, size: int = PART_BYTES) -> CatalogPart:
    cut = data[ask.offset : ask.offset + size]
    return CatalogPart(router, ask.version, ask.offset, cut, xxhash.xxh3_64_intdigest(cut))


def test_bits_are_flipped_at_once_and_both_routers_hear_of_it() -> None:
    s = Scene()
    view, hide, _ = step(s.catalogs.newest, EditBatch(hide=("item-3",)))
    s.offer(CatalogOffer(A, 5, FIRST.version, [hide], [FIRST.version, view.version]))
    assert s.catalogs.newest.version == view.version, "without a turn of a thread"
    assert s.control.sent == [(A, CatalogHeld(view.version, 5)), (B, CatalogHeld(view.version, 0))]
    assert s.catalogs.versions == [FIRST.version, view.version], "both routers may still use the first"
    s.control.uses_of = {A: [view.version], B: [view.version]}
    lease = s.catalogs.lease(FIRST.version)
    s.turn()
    assert s.catalogs.versions == [FIRST.version, view.version], "it is read"
    lease.end()
    assert s.catalogs.versions == [view.version]


def test_new_items_come_in_aside_and_what_follows_waits_for_them() -> None:
    s = Scene()
    first, put, _ = step(s.catalogs.newest, EditBatch(put=(ItemRecord("more", (1, 2, 3)),)))
    second, hide, _ = step(first, EditBatch(hide=("more",)))
    assert not is_quick(s.catalogs.newest, [put], []) and is_quick(first, [hide], [])
    s.offer(CatalogOffer(A, 1, FIRST.version, [put], []))
    s.offer(CatalogOffer(A, 2, first.version, [hide], []))
    answers = [s.held()]
    if answers[0].version != second.version:
        answers.append(s.held())
    assert answers[-1] == CatalogHeld(second.version, 2) and s.catalogs.newest.version == second.version


def test_a_version_is_held_once_searches_can_read_it() -> None:
    s = Scene()
    (of_one_leaf,) = FIRST.items_of_leaves([0])
    view, hide, _ = step(s.catalogs.newest, EditBatch(hide=tuple(of_one_leaf)))
    s.readers.turns = 4
    s.offer(CatalogOffer(A, 5, FIRST.version, [hide], []))
    assert s.updates.due(s.now) == PLACE_EVERY
    for _ in range(2):
        assert s.turn() == [] and s.catalogs.versions == [FIRST.version]
    assert len(s.turn()) == 2 and s.catalogs.newest.version == view.version
    assert (s.readers.placed, s.readers.ready) == ([view.version], [1]), "with what is visible of it"
    assert s.updates.due(s.now) is None


def test_an_offer_waits_for_room_and_versions_that_are_let_go_make_it() -> None:
    s = Scene()
    first, put, _ = step(s.catalogs.newest, EditBatch(put=(ItemRecord("more", (1, 2, 3)),)))
    lease = s.catalogs.lease(FIRST.version)
    s.readers.room = False
    s.offer(CatalogOffer(A, 1, FIRST.version, [put], [first.version]))
    end = time.monotonic() + 10.0
    while s.updates.due(s.now) is None and time.monotonic() < end:
        s.turn()
    assert s.turn() == [] and s.catalogs.versions == [FIRST.version], "no request of it fails meanwhile"
    s.readers.room = True
    assert s.held() == CatalogHeld(first.version, 1)
    s.control.uses_of = {A: [first.version], B: [first.version]}
    s.turn()
    s.turn()
    assert s.readers.kept == [FIRST.version, first.version], "the first is read"
    lease.end()
    s.turn()
    assert s.readers.kept == [first.version]


def test_want_of_memory_for_a_version_is_said() -> None:
    s = Scene()
    s.readers.problem = "the device has no 9 MiB left"
    view, hide, _ = step(s.catalogs.newest, EditBatch(hide=("item-3",)))
    s.offer(CatalogOffer(A, 5, FIRST.version, [hide], []))
    assert s.held() == CatalogHeld(view.version, 5, s.readers.problem)
    assert s.catalogs.versions == [FIRST.version] and s.updates.due(s.now) is None


def test_a_file_comes_in_parts_and_goes_on_with_another_router() -> None:
    s = Scene()
    s.offer(CatalogOffer(A, 1, "", [whole()], [FIRST.version, OTHER.version]))
    ((to, ask),) = s.control.sent
    assert to == A and isinstance(ask, CatalogAsk) and ask == CatalogAsk(OTHER.version, 0)
    s.now += 0.05
    s.updates.take(part(ask, size=1000), s.now)
    assert s.turn() == [], "as long as the part took, others have the link"
    ((_, ask),) = s.turn(0.06)
    assert ask == CatalogAsk(OTHER.version, 1000)
    del s.control.uses_of[A]
    assert s.turn() == [] and s.catalogs.versions == [FIRST.version]
    s.offer(CatalogOffer(B, 8, "", [whole()], [OTHER.version]))
    assert s.control.sent[-1] == (B, CatalogAsk(OTHER.version, 1000)), "what is here is kept"
    damaged = part(CatalogAsk(OTHER.version, 1000))
    s.updates.take(CatalogPart(B, OTHER.version, 1000, damaged.data, damaged.checksum ^ 1), s.now)
    assert s.counters["stale_messages"] == 1
    ((_, ask),) = s.turn(0.2)
    assert isinstance(ask, CatalogAsk) and ask.offset == 1000, "a damaged part is asked for again"
    s.updates.take(part(ask), s.now)
    s.control.uses_of[A] = []
    end = time.monotonic() + 10.0
    while s.catalogs.newest.version != OTHER.version and time.monotonic() < end:
        s.turn()
    assert s.catalogs.newest.catalog.items == 90 and s.counters["catalog_bytes"] == len(BYTES)


def test_a_silent_router_is_asked_again_or_another_one() -> None:
    s = Scene()
    s.offer(CatalogOffer(A, 1, "", [whole()], []))
    s.offer(CatalogOffer(B, 2, "", [whole()], []))
    assert [to for to, _ in s.control.sent] == [A]
    asked = {to for _ in range(4) for to, _ in s.turn(PATIENCE + 0.1)}
    assert asked == {A, B}


def test_a_file_is_mapped_where_the_router_has_it() -> None:
    s = Scene(maps_memory=True)
    region = HostRegion(this_process(), FILE.fileno(), len(BYTES))
    s.offer(CatalogOffer(A, 1, "", [whole(memory=region)], [OTHER.version]))
    assert s.held() == CatalogHeld(OTHER.version, 1) and s.counters["catalog_bytes"] == 0
    assert s.catalogs.newest.catalog.items == 90


@pytest.mark.parametrize("wrong", ["size", "unsealed", "owner"])
def test_what_cannot_be_mapped_is_asked_for(wrong: str) -> None:
    s = Scene(maps_memory=True)
    owner = this_process()
    with open("/proc/self/exe", "rb") as other:  # noqa: PTH123
        region = {
            "size": HostRegion(owner, FILE.fileno(), len(BYTES) + 1),
            "unsealed": HostRegion(owner, other.fileno(), len(BYTES)),
            "owner": HostRegion(msgspec.structs.replace(owner, started=1), FILE.fileno(), len(BYTES)),
        }[wrong]
        s.offer(CatalogOffer(A, 1, "", [whole(memory=region)], []))
    assert s.control.sent == [(A, CatalogAsk(OTHER.version, 0))]


def test_a_long_batch_is_asked_for() -> None:
    s = Scene()
    view, put, data = step(s.catalogs.newest, EditBatch(put=(ItemRecord("more", (1, 2, 3)),)), inline=False)
    s.offer(CatalogOffer(A, 1, FIRST.version, [put], []))
    ((_, ask),) = s.control.sent
    assert isinstance(ask, CatalogAsk)
    s.control.sent.clear()
    s.updates.take(part(ask, data), s.now)
    assert s.held() == CatalogHeld(view.version, 1)


@pytest.mark.parametrize(
    ("parent", "change", "problem"),
    [
        ("unknown", {}, "is not held"),
        (FIRST.version, {"version": "0" * 32}, "came out as"),
        (FIRST.version, {"digest": 1}, "is damaged"),
        (FIRST.version, {"data": b"\xc1", "digest": xxhash.xxh3_64_intdigest(b"\xc1")}, "cannot be applied"),
    ],
)
def test_a_chain_that_leads_elsewhere_is_said(parent: str, change: dict[str, Any], problem: str) -> None:
    s = Scene()
    _, hide, _ = step(s.catalogs.newest, EditBatch(hide=("item-3",)))
    wrong = msgspec.structs.replace(hide, **change)
    s.offer(CatalogOffer(A, 4, parent, [wrong], []))
    held = s.held()
    assert held.broken and problem in held.problem and s.counters["catalog_broken_chains"] == 1
    assert s.catalogs.versions == [FIRST.version] and s.control.sent == [], "others hear nothing of it"


def test_what_the_engine_cannot_search_is_refused() -> None:
    s = Scene()
    s.problem = "it has other SIDs"
    _, hide, _ = step(s.catalogs.newest, EditBatch(hide=("item-3",)))
    s.offer(CatalogOffer(A, 4, FIRST.version, [hide], []))
    held = s.held()
    assert held.problem == "it has other SIDs" and not held.broken
    assert s.catalogs.versions == [FIRST.version]


def test_bytes_of_another_file_are_of_no_use() -> None:
    pull = Pull(whole(digest=1))
    ask = pull.ask(0.0)
    assert ask is not None and not pull.take(part(CatalogAsk("other", 0)), 0.0)
    while ask is not None:
        assert pull.take(part(ask), 0.0)
        ask = pull.ask(0.0)
    assert pull.whole and "not those" in pull.problem
    pull.close()


def test_named_conditions_are_ready_before_it_is_held() -> None:
    s = Scene()
    view, hide, _ = step(s.catalogs.newest, EditBatch(hide=("item-3",)))
    s.offer(CatalogOffer(A, 4, FIRST.version, [hide], [], ["stock < 9"]))
    s.held()
    assert s.catalogs.newest.version == view.version
    s.offer(CatalogOffer(A, 5, view.version, [], [], ["nonsense <"]))
    assert s.held() == CatalogHeld(view.version, 5), "what is no condition here is a request's to find out"


def asking(where: str, request: int = 1) -> DecodeRequest:
    id = AttemptId(A, request, 1, 3, 4)
    return DecodeRequest(id, b"", 1, 1, "vocab", FIRST.version, None, b"", 5.0, where=where)


def test_a_request_waits_for_a_condition_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogs = Catalogs(CatalogView(FIRST))
    conditions = Conditions(catalogs)
    assert FIRST.items <= AT_ONCE and not conditions.hold(asking("stock < 9"), 1.0), "that is quick"
    monkeypatch.setattr("decode_worker.conditions.AT_ONCE", 0)
    assert not conditions.hold(asking(""), 1.0)
    request, other = asking("stock < 9"), asking("stock < 8", 2)
    assert conditions.hold(request, 1.0) and conditions.hold(other, 1.0) and request.id in conditions
    assert catalogs.leases(FIRST.version) == 2
    assert conditions.late(5.9) == [] and conditions.late(6.0) == [request.id, other.id]
    assert conditions.drop(other.id) and not conditions.drop(other.id)
    end = time.monotonic() + 10.0
    found: list[object] = []
    while not found and time.monotonic() < end:
        found = list(conditions.done())
    assert found == [(request, 1.0)] and len(conditions) == 0 and catalogs.leases(FIRST.version) == 0
    conditions.close()
