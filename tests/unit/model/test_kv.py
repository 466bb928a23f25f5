"""The KV pool: what goes in as tensors or bytes comes back bit for bit, and nothing else changes."""

import numpy as np
import pytest
import torch

from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.wire.messages import ModelIdentity

PAGE = 4
CONSECUTIVE = np.array([2, 3, 4], dtype=np.int32)
SCATTERED = np.array([5, 1, 3], dtype=np.int32)
REVERSED = np.array([4, 3, 2], dtype=np.int32)


def identity(dtype: str) -> ModelIdentity:
    return ModelIdentity("", dtype, layers=3, kv_heads=2, head_dim=5, hidden=20, vocab=11, tp_size=1)


def random_pool(dtype: str, seed: int) -> KvPool:
    pool = KvPool(identity(dtype), pages=7, page_size=PAGE)
    torch.manual_seed(seed)
    pool.k.copy_(torch.randn(pool.k.shape))
    pool.v.copy_(torch.randn(pool.v.shape))
    return pool


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "pages", [CONSECUTIVE, SCATTERED, REVERSED], ids=["consecutive", "scattered", "reversed"]
)
@pytest.mark.parametrize(
    ("start", "count"), [(0, 12), (0, 1), (3, 2), (5, 7), (4, 4), (11, 1)], ids=lambda n: f"{n}"
)
def test_chunk_crosses_bit_for_bit(dtype: str, pages: PageIds, start: int, count: int) -> None:
    sender, receiver = random_pool(dtype, 0), random_pool(dtype, 1)
    before = receiver.k.clone()
    there = SCATTERED if pages is CONSECUTIVE else CONSECUTIVE  # page ids are private to each side
    for first, last in ((0, 3), (1, 2)):
        k_bytes, v_bytes = sender.read_bytes(first, last, pages, start, count)
        chunk = (last - first) * count * sender.identity.token_bytes // 2 // sender.identity.layers
        assert (k_bytes.nbytes, v_bytes.nbytes) == (chunk, chunk)
        receiver.write_bytes(first, last, there, start, count, bytes(k_bytes), bytearray(v_bytes))  # type: ignore[arg-type]
        for layer in range(first, last):
            sent, got = sender.read(layer, pages, start, count), receiver.read(layer, there, start, count)
            assert all(torch.equal(a, b) for a, b in zip(sent, got, strict=True))
    touched = (receiver.k != before).flatten(3).any(-1).sum().item()
    assert touched == 3 * count


@pytest.mark.parametrize("bits", [0x7FC1, 0xFF80, 0x0001, 0x8000], ids=hex)
def test_odd_bit_patterns_survive(bits: int) -> None:
    """NaN payloads, infinities, subnormals and -0 are bytes like any others."""
    sender, receiver = random_pool("bfloat16", 0), random_pool("bfloat16", 1)
    sender.k[1].view(torch.uint16).fill_(bits)
    receiver.write_bytes(1, 2, CONSECUTIVE, 0, 12, *sender.read_bytes(1, 2, SCATTERED, 0, 12))
    assert (receiver.read(1, CONSECUTIVE, 0, 12)[0].view(torch.uint16) == bits).all()


@pytest.mark.parametrize("pages", [CONSECUTIVE, SCATTERED], ids=["consecutive", "scattered"])
def test_write_then_read(pages: PageIds) -> None:
    pool = random_pool("float32", 0)
    k, v = torch.randn(5, 2, 5), torch.randn(2, 5, 5).transpose(0, 1)
    pool.write(2, pages, 6, k, v)
    got_k, got_v = pool.read(2, pages, 6, 5)
    assert torch.equal(got_k, k) and torch.equal(got_v, v)
    # Token t lies in slot t % page_size of page t // page_size.
    assert torch.equal(pool.k[2, pages[6 // PAGE], 6 % PAGE], k[0])
    assert torch.equal(pool.v[2, pages[10 // PAGE], 10 % PAGE], v[4])


def test_consecutive_pages_are_views() -> None:
    pool = random_pool("float32", 0)
    k, _ = pool.read(1, CONSECUTIVE, 1, 9)
    k_bytes, _ = pool.read_bytes(1, 2, CONSECUTIVE, 1, 9)
    pool.k[1, CONSECUTIVE[0], 1] = 42.0
    assert (k[0] == 42.0).all()
    assert np.frombuffer(k_bytes, dtype=np.float32)[0] == 42.0


def test_wrong_size_is_refused_before_anything_is_written() -> None:
    pool = random_pool("float32", 0)
    k, v = pool.k.clone(), pool.v.clone()
    good = bytes(3 * 2 * 5 * 4)
    for pair in ((good[:-4], good), (good, good + b"\0"), (good, b"")):
        with pytest.raises(ValueError, match="bytes of KV"):
            pool.write_bytes(0, 1, CONSECUTIVE, 0, 3, *pair)
    assert torch.equal(pool.k, k) and torch.equal(pool.v, v)


@pytest.mark.parametrize(
    ("pages", "start", "count"),
    [(CONSECUTIVE, 10, 3), (np.array([6, 7], dtype=np.int32), 2, 4), (np.array([-1], dtype=np.int32), 0, 1)],
    ids=["beyond-its-pages", "page-beyond-pool", "negative-page"],
)
def test_out_of_bounds_is_caught(pages: PageIds, start: int, count: int) -> None:
    with pytest.raises(AssertionError):
        random_pool("float32", 0).read(0, pages, start, count)


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_sizes(dtype: str, itemsize: int) -> None:
    pool = KvPool(identity(dtype), pages=7, page_size=PAGE)
    assert pool.identity.token_bytes == 2 * 3 * 2 * 5 * itemsize
    assert pool.size_bytes == pool.k.nbytes + pool.v.nbytes
    assert pool.k.shape[1] == 8 and pool.scratch_page == 7, "a page for rows of padding comes on top"
    tail = TailKv(pool.identity, tokens=2, rows=9)
    assert tail.k.shape == tail.v.shape == (3, 2, 9, 2, 5)
    assert tail.k.dtype == pool.k.dtype
