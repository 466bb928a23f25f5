"""A pool that another process maps: the same bits there, by page and by generation, and nothing foreign."""

import gc
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.pages import PageIds, PagePool
from xgr_runtime.kv.shared_memory import CannotMap
from xgr_runtime.model.memory import kv_memory
from xgr_runtime.model.memory.kv_memory import exported_memory, mapped_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.wire.messages import HostRegion, ModelIdentity, SharedKv

CPU = torch.device("cpu")
PAGES, PAGE = 9, 4
DTYPES = ("float32", "bfloat16")
THEIRS = np.array([5, 1, 3], np.int32)


def identity(dtype: str = "float32") -> ModelIdentity:
    return ModelIdentity("", dtype, layers=3, kv_heads=2, head_dim=5, hidden=20, vocab=11, tp_size=1)


def exported_pool(dtype: str = "float32") -> KvPool:
    pool = KvPool(identity(dtype), PAGES, PAGE, exported_memory(identity(dtype), PAGES, PAGE, CPU))
    torch.manual_seed(3)
    pool.k.copy_(torch.randn(pool.k.shape))
    pool.v.copy_(torch.randn(pool.v.shape))
    return pool


def own(pipe: Connection) -> None:
    """Another process with a pool of each type: says where it is, then gives pages back until told to end."""
    for dtype in DTYPES:
        pool = exported_pool(dtype)
        pages = PagePool(PAGES, pool.memory.generations)
        held = pages.allocate(PAGES)
        assert held is not None and pool.memory.shared is not None
        pipe.send(msgspec.msgpack.encode(pool.memory.shared))
        while (ids := pipe.recv()) is not None:
            pages.release(np.array(ids, np.int32))
            pipe.send(True)


@pytest.fixture
def owner() -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=own, args=(theirs,))
    process.start()
    theirs.close()
    yield ours
    ours.close()
    process.join()


def test_another_process_reads_the_same_bits(owner: Connection) -> None:
    for dtype in DTYPES:
        memory = mapped_memory(msgspec.msgpack.decode(owner.recv(), type=SharedKv), identity(dtype))
        pool, expected = KvPool(identity(dtype), PAGES, PAGE, memory), exported_pool(dtype)
        assert torch.equal(pool.k, expected.k) and torch.equal(pool.v, expected.v)
        assert not memory.generations.any()
        owner.send([3, 5])
        assert owner.recv()
        assert np.flatnonzero(memory.generations).tolist() == [3, 5]
        with pytest.raises(ValueError, match="read-only"):
            memory.generations[0] = 1
        owner.send(None)


@pytest.mark.parametrize("page_size", [1, 3, 4, 16], ids="page={}".format)
@pytest.mark.parametrize(("start", "count"), [(0, 12), (0, 1), (3, 2), (5, 7), (11, 1)], ids=str)
@pytest.mark.parametrize("theirs", [THEIRS, np.arange(4, 7, dtype=np.int32)], ids=["scattered", "run"])
def test_a_prompt_is_pulled_bit_for_bit(page_size: int, start: int, count: int, theirs: PageIds) -> None:
    """Page sizes are private to each side."""
    source = exported_pool("bfloat16")
    ours = KvPool(identity("bfloat16"), 40, page_size)
    run = np.arange(7, 7 + -(-12 // page_size), dtype=np.int32)
    for pages in (run, np.roll(run, 1)):
        ours.k.zero_()
        ours.v.zero_()
        ours.copy_from(source, 1, 3, theirs, pages, start, count)
        for layer in range(3):
            got, sent = ours.read(layer, pages, start, count), source.read(layer, theirs, start, count)
            assert all(torch.equal(a, b) for a, b in zip(got, sent, strict=True)) == (layer > 0)
        assert (ours.k != 0).flatten(3).any(-1).sum().item() == 2 * count, "and nothing else"


def test_chunks_of_frames_come_out_of_it_as_well() -> None:
    source, ours = exported_pool(), KvPool(identity(), 40, 16)
    pages = np.array([2], np.int32)
    ours.write_bytes(0, 3, pages, 0, 12, *source.read_bytes(0, 3, THEIRS, 0, 12))
    assert torch.equal(ours.read(2, pages, 0, 12)[0], source.read(2, THEIRS, 0, 12)[0])


@pytest.mark.parametrize(
    "change",
    [{"id": 1}, {"pages": PAGES + 1}, {"pages": 0}, {"page_size": 8}, {"page_size": 0}, {"kv": None}],
    ids=str,
)
def test_memory_that_is_not_what_it_says_is_not_mapped(change: dict[str, Any]) -> None:
    pool = exported_pool()
    shared = pool.memory.shared
    assert shared is not None and isinstance(shared.kv, HostRegion)
    mapped_memory(shared, identity())
    if "kv" in change:
        change = {"kv": HostRegion(shared.kv.owner, shared.kv.fd, shared.kv.size - 1)}
    with pytest.raises(CannotMap):
        mapped_memory(msgspec.structs.replace(shared, **change), identity())


def test_a_pool_of_another_model_is_not_mapped() -> None:
    shared = exported_pool("bfloat16").memory.shared
    assert shared is not None
    with pytest.raises(CannotMap):
        mapped_memory(shared, identity("float32"))


def test_a_pool_that_is_dropped_leaves_no_mapping() -> None:
    def mapped() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("/memfd:xgr ")

    before = mapped()
    pool = exported_pool()
    assert pool.memory.shared is not None
    reader = KvPool(identity(), PAGES, PAGE, mapped_memory(pool.memory.shared, identity()))
    assert mapped() == before + 4, "keys and values, and generations, twice"
    del pool, reader
    assert mapped() == before


def test_a_machine_without_such_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's memory can be shared where main memory cannot: the generations lie in the latter."""

    def refuse(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(kv_memory, "Segment", refuse)
    with pytest.raises(ConfigError, match="generations of 9 pages"):
        exported_memory(identity(), PAGES, PAGE, CPU)
