"""KV that left the pool comes back bit for bit, the oldest is lost first, and nothing else is touched."""

import numpy as np
import pytest
import torch

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.model.device.device import HostDevice
from xgr_runtime.model.memory.host_tier import HostTier, piece_sizes
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.wire.messages import ModelIdentity

IDENTITY = ModelIdentity("", "float32", 2, 1, 4, 8, 100, 1)
SIZE = 4


@pytest.fixture
def pool() -> KvPool:
    """Six pages of random numbers."""
    made = KvPool(IDENTITY, 6, SIZE)
    made.k.normal_(generator=torch.Generator().manual_seed(1))
    made.v.normal_(generator=torch.Generator().manual_seed(2))
    return made


def tier_of(pool: KvPool, pages: float) -> HostTier:
    return HostTier(pool, int(pages * SIZE * IDENTITY.token_bytes), HostDevice())


def test_what_is_saved_comes_back_into_any_page(pool: KvPool) -> None:
    tier, before = tier_of(pool, 3), (pool.k.clone(), pool.v.clone())
    for name, page in ((b"a", 1), (b"b", 4)):
        tier.save(name, page)
    pool.k[:, [1, 4]] = pool.v[:, [1, 4]] = 0.0
    tier.load([b"a", b"b"], np.array([5, 0], np.int32))
    for x, was in zip((pool.k, pool.v), before, strict=True):
        assert torch.equal(x[:, [5, 0]], was[:, [1, 4]]) and torch.equal(x[:, [2, 3]], was[:, [2, 3]])


@pytest.mark.parametrize(("pages", "kept"), [(1, "c"), (2.5, "bc"), (3, "abc")])
def test_the_oldest_is_lost_first(pool: KvPool, pages: float, kept: str) -> None:
    tier = tier_of(pool, pages)
    for page, name in enumerate((b"a", b"b", b"c")):
        tier.save(name, page)
    assert [name for name in "abc" if name.encode() in tier] == list(kept)


def test_memory_that_holds_no_page_is_refused(pool: KvPool) -> None:
    least = SIZE * IDENTITY.token_bytes  # a power of two
    with pytest.raises(ConfigError, match=f"--host-cache-bytes {least - 1} holds no page .* to {least}"):
        HostTier(pool, least - 1, HostDevice())


def test_what_was_loaded_or_saved_again_is_young(pool: KvPool) -> None:
    tier = tier_of(pool, 3)
    for page, name in enumerate((b"a", b"b", b"c")):
        tier.save(name, page)
    tier.load([b"a"], np.array([5], np.int32))
    tier.save(b"b", 1)
    tier.save(b"d", 3)
    assert b"c" not in tier and all(name in tier for name in (b"a", b"b", b"d"))
    tier.clear()
    assert b"a" not in tier
    tier.save(b"e", 2)
    assert b"e" in tier


class PinningDevice(HostDevice):
    """Counts as torch pins: each block takes the next power of two of bytes."""

    def __init__(self) -> None:
        self.pinned = 0

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        block = super().staging(*shape, dtype=dtype)
        self.pinned += 1 << (block.nbytes - 1).bit_length()
        return block


@pytest.mark.parametrize("pages", [1.6, 3, 4, 5.3])
def test_no_more_is_pinned_than_was_given(pool: KvPool, pages: float) -> None:
    device, page_bytes = PinningDevice(), SIZE * IDENTITY.token_bytes
    tier = HostTier(pool, int(pages * page_bytes), device)
    assert device.pinned <= pages * page_bytes
    before, names = pool.k.clone(), [bytes([page]) for page in range(int(pages))]
    for page, name in enumerate(names):
        tier.save(name, page)
    pool.k.zero_()
    tier.load(names, np.arange(len(names), dtype=np.int32))
    assert torch.equal(pool.k[:, : len(names)], before[:, : len(names)]), "every page, from whichever block"


@pytest.mark.parametrize(
    ("size", "page", "pieces"),
    [(0, 3, []), (2, 3, []), (3, 3, []), (7, 3, [4]), (8, 3, [8]), (100 << 30, 1_835_008, [64, 32, 4])],
    ids=str,
)
def test_pieces_are_powers_of_two_that_hold_a_page(size: int, page: int, pieces: list[int]) -> None:
    scale = 1 << 30 if size > 100 else 1
    assert piece_sizes(size, page) == [piece * scale for piece in pieces]


def test_a_prompt_that_was_pushed_out_is_found_again(pool: KvPool) -> None:
    cache = PromptCache(PagePool(6), SIZE, tier=tier_of(pool, 8))
    first, second = (np.arange(start, start + 21, dtype=np.int32) for start in (0, 50))
    held = cache.begin(first)
    assert held is not None
    cache.keep(held, 21)
    computed = pool.k[:, held.pages[:5]].clone()
    cache.end(held)
    other = cache.begin(second)
    assert other is not None
    pool.k[:, other.pages] = 7.0
    cache.end(other)
    assert cache.cached(first) == 20, "two of five pages are there still"
    again = cache.begin(first)
    assert again is not None and again.cached_tokens == 20 and cache.restored == 5
    assert torch.equal(pool.k[:, again.pages[:5]], computed)
    cache.end(again)
    cache.flush()
    assert cache.cached(first) == 0
