"""KV memory of a worker: prompt keys and values in pages, with a hard bound.

Which page belongs to whom is decided elsewhere (`xgr_runtime.kv.pages`); this module only reads and writes
tokens of a list of pages, as tensors for attention and as bytes for the wire. Consecutive pages are one view.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_runtime.kv.pages import PageIds, slots_of
from xgr_runtime.model.base import DTYPES
from xgr_runtime.model.memory.device_memory import reading
from xgr_runtime.model.memory.kv_memory import KvMemory, private_memory
from xgr_runtime.wire.messages import ModelIdentity


class KvPool:
    """`pages` pages of `page_size` tokens: k and v are [layers, pages + 1, page_size, Hkv, D].

    Token t of a prompt lies in slot t % page_size of its page t // page_size. `memory` is where all of it
    lies, private main memory by default. One page more, `scratch_page`, is for rows of padding to write.
    """

    def __init__(
        self, identity: ModelIdentity, pages: int, page_size: int, memory: KvMemory | None = None
    ) -> None:
        self.identity = identity
        self.pages = pages
        self.scratch_page = pages
        self.page_size = page_size
        self.memory = memory or private_memory(identity, pages, page_size, torch.device("cpu"))
        shape = (2, identity.layers, -1, page_size, identity.kv_heads, identity.head_dim)
        keys_and_values = self.memory.kv.view(DTYPES[identity.dtype]).view(shape)
        self.k: Tensor = keys_and_values[0]
        self.v: Tensor = keys_and_values[1]

    @property
    def size_bytes(self) -> int:
        """Memory that the pool holds, used or not."""
        return self.memory.kv.nbytes

    def write(self, layer: int, pages: PageIds, start: int, k: Tensor, v: Tensor) -> None:
        """Store k and v [n, Hkv, D] as tokens [start, start + n) of the prompt that `pages` hold."""
        where = self._where(pages, start, k.shape[0])
        self._flat(self.k)[layer][where] = k
        self._flat(self.v)[layer][where] = v

    def read(self, layer: int, pages: PageIds, start: int, count: int) -> tuple[Tensor, Tensor]:
        """k and v [count, Hkv, D] of tokens [start, start + count); views if the pages are consecutive."""
        where = self._where(pages, start, count)
        return self._flat(self.k)[layer][where], self._flat(self.v)[layer][where]

    def read_bytes(
        self, first_layer: int, last_layer: int, pages: PageIds, start: int, count: int
    ) -> tuple[memoryview, memoryview]:
        """Bytes of k and of v, [last_layer - first_layer, count, Hkv, D] each, for one chunk of the wire.

        One layer of consecutive pages is the pool's own memory, not a copy: keep it allocated until sent.
        """
        where = self._where(pages, start, count)
        k, v = (self._flat(x)[first_layer:last_layer, where] for x in (self.k, self.v))
        return _as_bytes(k), _as_bytes(v)

    def copy_from(
        self,
        source: "KvPool",
        first_layer: int,
        last_layer: int,
        theirs: PageIds,
        ours: PageIds,
        start: int,
        count: int,
    ) -> None:
        """Copy tokens [start, start + count) of a prompt, bit for bit, out of pages `theirs` of another
        worker's pool into `ours`. Page sizes may differ. On a GPU it is only queued."""
        if self.k.device.type == source.k.device.type == "cpu":
            # Not by torch: its threads would wake, and spin on cores where the prompt is being computed.
            there, here = source._slots(theirs, start, count), self._slots(ours, start, count)
            for into, out_of in ((self.k, source.k), (self.v, source.v)):
                found = _raw(self._flat(out_of)[first_layer:last_layer])[:, there]
                _raw(self._flat(into)[first_layer:last_layer])[:, here] = found
            return
        out_at, into_at = source._where(theirs, start, count), self._where(ours, start, count)
        for into, out_of in ((self.k, source.k), (self.v, source.v)):
            copied = self._flat(out_of)[first_layer:last_layer, out_at]
            if not isinstance(into_at, slice):
                copied = copied.to(into.device, non_blocking=True)
            self._flat(into)[first_layer:last_layer, into_at] = copied

    def write_bytes(
        self,
        first_layer: int,
        last_layer: int,
        pages: PageIds,
        start: int,
        count: int,
        k_bytes: memoryview | bytes,
        v_bytes: memoryview | bytes,
    ) -> None:
        """Store what `read_bytes` of a pool of the same model gave, bit for bit.

        Raises ValueError when a buffer has another size than the ranges say.
        """
        where = self._where(pages, start, count)
        layers = last_layer - first_layer
        k, v = self._from_bytes(layers, count, k_bytes), self._from_bytes(layers, count, v_bytes)
        for x, new in ((self.k, k), (self.v, v)):
            self._flat(x)[first_layer:last_layer, where] = new.to(x.device)

    def _flat(self, x: Tensor) -> Tensor:
        """[layers, pages * page_size, Hkv, D]: tokens of neighbouring pages are neighbours."""
        return x.flatten(1, 2)

    def _where(self, pages: PageIds, start: int, count: int) -> slice | Tensor:
        """`_slots` for an index of our tensors."""
        slots = self._slots(pages, start, count)
        return slots if isinstance(slots, slice) else torch.from_numpy(slots).to(self.k.device)

    def _slots(self, pages: PageIds, start: int, count: int) -> slice | NDArray[np.int64]:
        """Where tokens [start, start + count) lie in `_flat`: a slice if their pages are consecutive."""
        if count == 0:
            return slice(0, 0)
        first, last = start // self.page_size, (start + count - 1) // self.page_size
        assert start >= 0 and last < len(pages), "tokens beyond the pages of the prompt"
        used = pages[first : last + 1]
        assert used.min() >= 0 and used.max() < self.pages, "a page outside of the pool"
        if len(used) == 1 or bool((np.diff(used) == 1).all()):
            begin = int(used[0]) * self.page_size + start % self.page_size
            return slice(begin, begin + count)
        return slots_of(pages, start, count, self.page_size)

    def _from_bytes(self, layers: int, count: int, data: memoryview | bytes) -> Tensor:
        """The frame as keys or values, not copied. Raises ValueError."""
        identity = self.identity
        view, want = memoryview(data).cast("B"), layers * count * identity.layer_token_bytes // 2
        if len(view) != want:
            raise ValueError(
                f"{len(view)} bytes of KV, {want} expected for {layers} layers of {count} tokens"
            )
        shape = (layers, count, identity.kv_heads, identity.head_dim)
        return reading(view).view(DTYPES[identity.dtype]).view(shape)


def _raw(x: Tensor) -> NDArray[np.int16]:
    """The memory of `x`, of any two or four bytes wide numbers."""
    return x.view(torch.int16).numpy()


def _as_bytes(x: Tensor) -> memoryview:
    """The memory of `x`, copied first if it is not contiguous or lies on a GPU."""
    return x.contiguous().view(torch.uint8).flatten().cpu().numpy().data


class TailKv:
    """Keys and values of generated tokens: tail_k and tail_v [layers, T, rows, Hkv, D], of running requests.

    Written in place and never moved; the ancestor tables say which row holds which token.
    """

    def __init__(
        self, identity: ModelIdentity, tokens: int, rows: int, device: torch.device | str = "cpu"
    ) -> None:
        shape = (identity.layers, tokens, rows, identity.kv_heads, identity.head_dim)
        # Zeros, not whatever memory held: a masked slot times zero must not become NaN.
        self.k: Tensor = torch.full(shape, 0.0, dtype=DTYPES[identity.dtype], device=device)
        self.v: Tensor = torch.full(shape, 0.0, dtype=DTYPES[identity.dtype], device=device)
