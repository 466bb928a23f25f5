"""Prompt KV that outlives its request: which pages hold which tokens, who reads them, what is dropped first.

A page of a prompt is named by a hash over all tokens up to its end, so whoever has the same tokens there
shares the page. Both workers keep one over their page pool. Plain data: no tensors, no sockets, no clock.
"""

import secrets
from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.kv.block_hashes import block_hashes
from xgr_runtime.kv.pages import PageIds, PagePool, pages_for

Tokens = NDArray[np.int32]

_DIGEST = 16  # bytes: with a key that only this process knows, nobody can look for two prompts of one name
_REMEMBERED = 512  # prompts whose names are not hashed again: those that wait are asked for at every turn


@dataclass(eq=False)
class HeldPrompt:
    """The pages of one prompt, from `PromptCache.begin` to `end`."""

    tokens: Tokens  # [L]
    pages: PageIds  # [pages_for(L)], in order
    cached_tokens: int  # the first tokens, whose KV was in these pages already: whole pages, less than L
    names: list[bytes] = field(default_factory=list)  # of the first pages, held in the cache for this prompt


@dataclass(eq=False, slots=True)
class _Page:
    """A page whose KV others may read."""

    id: int
    holders: int  # prompts


class Tier(Protocol):
    """Slower memory, with a bound of its own, where KV goes when its page is dropped."""

    def __contains__(self, name: bytes) -> bool:
        """Whether it has the KV of the page of that name."""
        ...

    def save(self, name: bytes, page: int) -> None:
        """Take a copy of a page that is about to be dropped."""
        ...

    def load(self, names: Sequence[bytes], pages: PageIds) -> None:
        """Copy KV that it has, [n] names, into as many pages of the pool; it is there on return."""
        ...

    def clear(self) -> None:
        """Drop everything."""
        ...


class PromptCache:
    """Shares pages of `pool`, `page_size` tokens each, between prompts that begin alike.

    Whole pages only, and never a whole prompt: somebody has to compute its last token. A page is in one of
    three places: free in the pool; held by requests, alone or together; or kept by the cache for nobody, at
    most `limit` of these, until a new prompt needs it. Then the least recently used goes first, the end of a
    prompt before its beginning. A cached page is not given back to the pool, so its generation stands still
    exactly as long as its KV does. With a `tier`, what is dropped can be brought back from there.
    """

    def __init__(
        self, pool: PagePool, page_size: int, limit: int | None = None, tier: Tier | None = None
    ) -> None:
        self.pool = pool
        self.page_size = page_size
        self.evicted = 0  # pages so far
        self.restored = 0  # of them, pages that came back
        self._tier = tier
        self._limit = pool.capacity if limit is None else limit
        self._pages: dict[bytes, _Page] = {}
        self._idle: OrderedDict[bytes, None] = (
            OrderedDict()
        )  # of them, those that no prompt holds; oldest first
        self._key = secrets.token_bytes(_DIGEST)
        self._names_of = lru_cache(_REMEMBERED)(self._hashed)

    @classmethod
    def bounded(
        cls,
        pool: PagePool,
        page_size: int,
        cache_bytes: int,
        token_bytes: int,
        tier: Tier | None = None,
    ) -> "PromptCache":
        """One that keeps at most `cache_bytes` for nobody; -1: whatever is free."""
        limit = None if cache_bytes < 0 else cache_bytes // (page_size * token_bytes)
        return cls(pool, page_size, limit, tier)

    @property
    def capacity(self) -> int:
        return self.pool.capacity

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return self.pool.used - len(self._idle)

    @property
    def cached_pages(self) -> int:
        """Pages that the cache alone holds."""
        return len(self._idle)

    def cached(self, tokens: Tokens) -> int:
        """How many of the first tokens `begin` would find. Touches nothing."""
        found = self._found(tokens)
        return (len(found) + len(self._in_tier(tokens, len(found)))) * self.page_size

    def soon(self, held: HeldPrompt, tokens: int) -> set[bytes]:
        """Names of the pages that `keep` would add once the first `tokens` tokens are computed."""
        return {*self._names_of(held.tokens.tobytes())[len(held.names) : tokens // self.page_size]}

    def waits_for(self, tokens: Tokens, soon: Set[bytes]) -> bool:
        """Whether a prompt would find more once the pages named in `soon` are kept."""
        at = self.cached(tokens) // self.page_size
        names = self._names_of(tokens.tobytes())[: (len(tokens) - 1) // self.page_size]
        return not soon.isdisjoint(names[at : at + 1])

    def fits(self, tokens: Tokens) -> bool:
        """Whether `begin` would succeed now."""
        return self._fits(tokens, self._found(tokens))

    def begin(self, tokens: Tokens) -> HeldPrompt | None:
        """Pages for a prompt, the first of them shared where it can be; None when there are too few."""
        found = self._found(tokens)
        if not self._fits(tokens, found):
            return None
        for name in found:
            self._hold(name)
        shared = np.array([self._pages[name].id for name in found], np.int32)
        missing = pages_for(len(tokens), self.page_size) - len(found)
        self._evict(missing - self.pool.free)
        fresh = self.pool.allocate(missing, after=int(shared[-1]) if len(shared) else None)
        assert fresh is not None, "pages were counted before"
        names = found + self._bring_back(self._in_tier(tokens, len(found)), fresh)
        return HeldPrompt(tokens, np.concatenate([shared, fresh]), len(names) * self.page_size, names)

    def keep(self, held: HeldPrompt, tokens: int) -> None:
        """The KV of the first `tokens` tokens is good: from now on others may share its whole pages.

        Where another prompt was first to compute the same page, ours stays our own.
        """
        names = self._names_of(held.tokens.tobytes())
        for index in range(len(held.names), tokens // self.page_size):
            name = names[index]
            if name not in self._pages:
                self._pages[name] = _Page(int(held.pages[index]), 0)
                self._idle[name] = None
            self._hold(name)
            held.names.append(name)

    def end(self, held: HeldPrompt, first_to_go: bool = False) -> None:
        """The request is over: what is cached may stay, the rest is free.

        `first_to_go`: what it brought is dropped before all else; what it found was others' and is no worse.
        """
        brought = held.names[held.cached_tokens // self.page_size :]
        shared = {self._pages[name].id for name in held.names}
        self.pool.release(held.pages[[page not in shared for page in held.pages.tolist()]])
        while held.names:  # the last first: so it is older than what it goes on from, and dropped before it
            name = held.names.pop()
            self._pages[name].holders -= 1
            if not self._pages[name].holders:
                self._idle[name] = None
        for name in brought if first_to_go else ():  # the first of them first: the last is the oldest then
            if name in self._idle:
                self._idle.move_to_end(name, last=False)
        held.pages = held.pages[:0]
        self._evict(len(self._idle) - self._limit)

    def flush(self) -> int:
        """Drop all that no request holds; returns pages."""
        count = len(self._idle)
        self._evict(count, save=False)
        if self._tier is not None:
            self._tier.clear()
        return count

    def _found(self, tokens: Tokens) -> list[bytes]:
        """Names of the pages that a prompt finds here, from its first on."""
        found = []
        for name in self._names_of(tokens.tobytes())[: (len(tokens) - 1) // self.page_size]:
            if name not in self._pages:
                break
            found.append(name)
        return found

    def _in_tier(self, tokens: Tokens, found: int) -> list[bytes]:
        """Names of the pages behind the first `found` that the tier has, up to the first that it has not."""
        if self._tier is None:
            return []
        names = self._names_of(tokens.tobytes())[found : (len(tokens) - 1) // self.page_size]
        return [*takewhile(self._tier.__contains__, names)]

    def _bring_back(self, names: list[bytes], fresh: PageIds) -> list[bytes]:
        """Fill the first of the `fresh` pages from the tier; others may share them at once."""
        if names and self._tier is not None:
            self._tier.load(names, fresh[: len(names)])
            self._pages |= {name: _Page(int(page), 1) for name, page in zip(names, fresh, strict=False)}
            self.restored += len(names)
        return names

    def _fits(self, tokens: Tokens, found: list[bytes]) -> bool:
        """Whether there are pages for all but the found, which must not be dropped for the others."""
        droppable = len(self._idle) - sum(name in self._idle for name in found)
        return pages_for(len(tokens), self.page_size) - len(found) <= self.pool.free + droppable

    def _hold(self, name: bytes) -> None:
        self._pages[name].holders += 1
        self._idle.pop(name, None)

    def _evict(self, count: int, save: bool = True) -> None:
        """Drop the `count` oldest pages that nobody holds."""
        pages = []
        for _ in range(count):
            name, _none = self._idle.popitem(last=False)
            pages.append(self._pages.pop(name).id)
            if self._tier is not None and save:
                self._tier.save(name, pages[-1])
        if pages:
            self.pool.release(np.array(pages, np.int32))
            self.evicted += len(pages)

    def _hashed(self, tokens: bytes) -> list[bytes]:
        """The names of a prompt's whole pages."""
        return block_hashes(tokens, self.page_size, blake2b(digest_size=_DIGEST, key=self._key))
