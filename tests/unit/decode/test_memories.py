"""What a decode worker makes of the memory that prefill workers offer, and of their ends."""

import logging
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from decode_worker import memories as decode_memories
from decode_worker.memories import PrefillMemories
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.shared_memory import CannotMap
from xgr_runtime.model.memory.kv_memory import exported_memory, mapped_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    DeviceRegion,
    HostRegion,
    LinkHello,
    ModelIdentity,
    Open,
    ProcessId,
    SharedKv,
)

IDENTITY = ModelIdentity("", "float32", 2, 1, 4, 8, 100, 1)
MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
PAGES, PAGE = 6, 4


class Offered:
    """A prefill worker's memory, in this very process."""

    def __init__(self) -> None:
        self.memory = exported_memory(IDENTITY, PAGES, PAGE, torch.device("cpu"))
        self.pages = PagePool(PAGES, self.memory.generations)
        assert self.memory.shared is not None
        self.shared: SharedKv = self.memory.shared

    def open(self, tokens: int = 7, prefill: int = 3) -> Open:
        ids = self.pages.allocate(2)
        assert ids is not None
        named = (ids.tobytes(), self.pages.generations[ids].tobytes())
        return Open(AttemptId(1, 2, 1, prefill, 4), tokens, 0.0, *named)


@pytest.fixture
def offered() -> Offered:
    return Offered()


def hello(memory: SharedKv | None, incarnation: int = 3) -> LinkHello:
    return LinkHello(PROTOCOL, "prefill-0", incarnation, MODEL, memory)


def memories(pull: bool = True, alive: Any = lambda process: True) -> PrefillMemories:
    return PrefillMemories(KvPool(IDENTITY, 8, 16), False, pull, alive)


def reading(offered: Offered, alive: Any = lambda process: True) -> PrefillMemories:
    """Of a worker that reads the offered pool in place."""
    pool = KvPool(IDENTITY, PAGES, PAGE, mapped_memory(offered.shared, IDENTITY))
    return PrefillMemories(pool, True, True, alive)


def test_an_offered_memory_is_pulled_from(offered: Offered) -> None:
    ours = memories()
    assert not ours.greeted(hello(offered.shared))
    source = ours.source_of(offered.open())
    assert source is not None and ours.way_of(source) == "pull" and source.intact
    offered.pages.release(source.pages.ids[:1])
    assert not source.intact, "the first of its pages was given back"


def test_the_same_run_is_mapped_once(offered: Offered) -> None:
    ours = memories()
    for _ in range(2):  # a link that broke greets again
        ours.greeted(hello(offered.shared))
        source = ours.source_of(offered.open())
        assert source is not None
    assert len(ours._mapped) == 1


def test_runs_beyond_a_bound_send_frames(offered: Offered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_memories, "MOST_MEMORIES", 2)
    ours = memories()
    for incarnation, memory in zip((3, 4, 5), (Offered(), Offered(), offered), strict=True):
        assert not ours.greeted(hello(memory.shared, incarnation))
    assert [*ours._mapped] == [3, 4] and ours.source_of(offered.open(prefill=5)) is None


def test_a_process_that_comes_back_is_no_other_memory(offered: Offered) -> None:
    """It took beams for a while."""
    ours = memories()
    for incarnation in (3, 4):
        ours.greeted(hello(offered.shared, incarnation))
        assert [*ours._mapped] == [incarnation]
    assert ours.source_of(offered.open(prefill=4)) is not None
    assert ours.source_of(offered.open(prefill=3)) is None, "what it was is over"


@pytest.mark.parametrize("case", ["nothing offered", "frames wanted", "not to be mapped", "another GPU"])
def test_otherwise_kv_comes_as_frames_and_why_is_logged(
    offered: Offered, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = memories(pull=case != "frames wanted")
    gone = HostRegion(ProcessId(2**22 + 1, 1), 3, offered.shared.kv.size)
    lie = msgspec.structs.replace(offered.shared, generations=gone)
    gpu = DeviceRegion(offered.shared.generations.owner, "GPU-1", bytes(64), offered.shared.kv.size)
    memory = {
        "nothing offered": None,
        "frames wanted": offered.shared,
        "not to be mapped": lie,
        "another GPU": msgspec.structs.replace(offered.shared, kv=gpu),
    }[case]
    assert not ours.greeted(hello(memory)), "it is welcome all the same"
    assert ours.source_of(offered.open()) is None and ours.way_of(None) == "frames"
    (record,) = [r for r in caplog.records if "as frames" in r.getMessage()]
    assert "prefill-0" in record.getMessage()


def test_pages_of_nobody_fail_the_attempt(offered: Offered) -> None:
    ours = memories()
    ours.greeted(hello(offered.shared))
    with pytest.raises(CannotMap, match="pages"):
        ours.source_of(msgspec.structs.replace(offered.open(), pages=np.array([1, 99], np.int32).tobytes()))


def test_the_memory_of_the_dead_is_let_go_once_nobody_reads_it(offered: Offered) -> None:
    living = {True}
    ours = memories(alive=lambda process: bool(living))
    ours.greeted(hello(offered.shared))
    source = ours.source_of(offered.open())
    assert source is not None
    ours.drop_dead([])
    assert ours._mapped
    living.clear()
    ours.drop_dead([source.pool])
    assert ours._mapped
    ours.drop_dead([])
    assert not ours._mapped and ours.source_of(offered.open()) is None and not ours.orphaned


def test_in_place_a_prompt_stays_where_it_is(offered: Offered) -> None:
    ours = reading(offered)
    assert not ours.greeted(hello(offered.shared))
    source = ours.source_of(offered.open())
    assert source is not None and source.pool is ours._pool and ours.way_of(source) == "in place"
    ours.orphaned = True
    assert not ours.took_prompts_along, "main memory outlives its owner"


def test_in_place_the_kv_of_others_is_refused(offered: Offered) -> None:
    ours = reading(offered)
    for memory in (None, Offered().shared):
        assert "in place" in ours.greeted(hello(memory, 9))
    assert not ours.orphaned, "our owner lives: the stranger has the wrong address"


def test_a_dead_owner_orphans_us(offered: Offered, caplog: pytest.LogCaptureFixture) -> None:
    ours = reading(offered, lambda process: False)
    for _ in range(2):
        ours.drop_dead([])
    assert ours.orphaned
    assert len([r for r in caplog.records if "start again" in r.getMessage()]) == 1


def test_the_greeting_of_a_restarted_owner_orphans_us(offered: Offered) -> None:
    ours = reading(offered, lambda process: False)
    assert ours.greeted(hello(Offered().shared, 9)) and ours.orphaned
