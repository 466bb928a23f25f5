"""Which worker probably holds the KV of which prompts: a guess, from what the router sent where.

A worker drops pages without telling, so a guess may be wrong: then the prompt is computed, as it would be
anywhere else. Plain data: no sockets, no clock.
"""

from collections import OrderedDict
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from xgr_runtime.kv.block_hashes import block_hashes

Tokens = NDArray[np.int32]

BLOCK = 64  # tokens that are guessed about together
_REMEMBERED = 64  # prompts whose hashes are at hand: each is asked about for every worker


_Block = tuple[int, bytes]
"""A worker's incarnation, and the hash of a prompt up to the end of one of its blocks."""


class ReuseIndex:
    """The last `most` blocks of prompts that went to workers, the least recently used forgotten first.

    Somebody could find two prompts of one hash: all they would get is a worker that has nothing of theirs.
    """

    def __init__(self, most: int = 1 << 18, block: int = BLOCK) -> None:
        self._most = most
        self._block = block
        self._known: OrderedDict[_Block, None] = OrderedDict()
        self._hashes = lru_cache(_REMEMBERED)(self._hashed)

    def __len__(self) -> int:
        return len(self._known)

    def expected(self, worker: int, tokens: Tokens) -> int:
        """How many of a prompt's first tokens that incarnation probably holds: whole blocks, never all."""
        found = 0
        for hash in self._hashes(tokens.tobytes())[: max(0, len(tokens) - 1) // self._block]:
            if (worker, hash) not in self._known:
                break
            found += self._block
        return found

    def note(self, worker: int, tokens: Tokens) -> None:
        """That incarnation holds this prompt, or will soon."""
        for hash in reversed(self._hashes(tokens.tobytes())):
            # The end of a prompt is older than its beginning, as in the caches.
            self._known[worker, hash] = None
            self._known.move_to_end((worker, hash))
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def forget(self, worker: int) -> None:
        """That incarnation is gone, and all it held."""
        for block in [known for known in self._known if known[0] == worker]:
            del self._known[block]

    def flush(self) -> None:
        """All caches are empty."""
        self._known.clear()

    def _hashed(self, tokens: bytes) -> list[bytes]:
        return block_hashes(tokens, self._block, xxhash.xxh3_64())
