"""The stages: what attention means while prompts are read, and while beams are grown.

A stage is made for one forward. It knows whose rows are in the batch and where their keys and values live,
which the model does not.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from xgr_kernels.attention.causal.api import causal_attention
from xgr_kernels.attention.paged import PagedAttention
from xgr_kernels.attention.shared.api import SharedPlan, shared_attention
from xgr_kernels.attention.tail.api import tail_attention_merge
from xgr_kernels.row_ops import KvSlots
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.memory.kv_pool import KvPool


class PrefillStage:
    """Causal attention over several packed prompts; keeps their k and v in the pool.

    `prompts` are (offset, count, pages): rows [offset, offset + count) of the batch are the next `count`
    tokens of the prompt that `pages` hold. They cover the batch in order. `prefixes` says how many tokens of
    each prompt its pages hold already, from earlier forwards; None: no prompt has any. `on_layer(layer)` is
    called when a layer's k and v of all rows are in the pool, before its attention: whoever sends them can
    begin. With `last_rows_of` a layer, that layer's attention is of each prompt's last row alone,
    [len(prompts), Hq, D].
    """

    def __init__(
        self,
        pool: KvPool,
        prompts: Sequence[tuple[int, int, PageIds]],
        on_layer: Callable[[int], None] | None = None,
        prefixes: Sequence[int] | None = None,
        backend: str = "cpu",
        last_rows_of: int | None = None,
    ) -> None:
        self._pool = pool
        self._prompts = prompts
        self._on_layer = on_layer
        lengths = [0] * len(prompts) if prefixes is None else list(prefixes)
        pages = [pages for _, _, pages in prompts]
        ends = [offset + count for offset, count, _ in prompts]
        self._prefix = SharedPlan([0, *ends], pages, lengths, pool.page_size)
        whole = [start + count for start, (_, count, _) in zip(lengths, prompts, strict=True)]
        self._whole = SharedPlan(list(range(len(prompts) + 1)), pages, whole, pool.page_size)
        self._last_rows = torch.tensor(ends) - 1
        self._last_rows_of = last_rows_of
        self._backend = backend

    @property
    def shared_tokens(self) -> int:
        """See `PacedStage`."""
        return sum(self._prefix.lengths)

    def passed(self, layer: int) -> None:
        """See `PacedStage`."""
        if self._on_layer is not None:
            self._on_layer(layer)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`."""
        pool, plan = self._pool, self._prefix
        for (offset, count, pages), start in zip(self._prompts, plan.lengths, strict=True):
            rows = slice(offset, offset + count)
            pool.write(layer, pages, start, k[rows], v[rows])
        self.passed(layer)
        if layer == self._last_rows_of:
            q = q[self._last_rows]
            return shared_attention(q, pool.k[layer], pool.v[layer], self._whole, scale, self._backend)[0]
        prefix = None
        if any(plan.lengths):
            prefix = shared_attention(q, pool.k[layer], pool.v[layer], plan, scale, self._backend)
        return causal_attention(q, k, v, plan.row_offsets, scale, prefix, self._backend)


@runtime_checkable
class StoringStage(Protocol):
    """A stage whose keys and values layers may store by themselves, where they make them.

    In each layer they do both of these, or call `attend` instead.
    """

    def places(self, layer: int) -> KvSlots:
        """Where k and v of the forward's rows go."""
        ...

    def attend_stored(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """`Stage.attend`, when k and v are there."""
        ...


class PagedPrefillStage:
    """`PrefillStage` in a captured launch: where rows go and which pages they read is data on the device.

    `slots` [N] int64 are the rows' places in the pool, page * page_size + token; `attention` is causal and
    planned for the batch. `on_layer(layer)` is called when the launch has written a layer's k and v. With
    `last_rows` [M] int64 the last layer's attention is of these rows alone, [M, Hq, D].
    """

    def __init__(
        self,
        pool: KvPool,
        slots: Tensor,
        attention: PagedAttention,
        on_layer: Callable[[int], None],
        last_rows: Tensor | None = None,
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._attention = attention
        self._on_layer = on_layer
        self._last_rows = last_rows

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`."""
        places = self.places(layer)
        places.k.index_copy_(0, self._slots, k)
        places.v.index_copy_(0, self._slots, v)
        return self.attend_stored(layer, q, scale)

    def places(self, layer: int) -> KvSlots:
        """See `StoringStage.places`."""
        return KvSlots(self._pool.k[layer].flatten(0, 1), self._pool.v[layer].flatten(0, 1), self._slots)

    def attend_stored(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """See `StoringStage.attend_stored`."""
        self._on_layer(layer)
        o = self._attention.attend(q, self._pool.k[layer], self._pool.v[layer], scale)[0]
        if self._last_rows is None or layer < self._pool.identity.layers - 1:
            return o
        # Of all rows, as planned: a second plan takes the host longer than this takes the device.
        return o.index_select(0, self._last_rows)


class CascadeStage:
    """Beams of several requests: attention to the shared prompt, to the tail, and their merge.

    `shared` says which rows read which pages, `anc` [R, T] which tail row holds which token of a beam, `rows`
    [R] where a beam's own new k and v go and `tail_len` [R] how many tail tokens it has already. tail_k and
    tail_v are [layers, T, rows, Hkv, D], see `TailKv`. `backend` names the kernels, as `xgr_kernels` does.
    `on_layer(layer)` is called before each layer's attention: a long forward need not make its worker deaf.
    """

    def __init__(
        self,
        pool: KvPool,
        shared: SharedPlan | PagedAttention,
        tail_k: Tensor,
        tail_v: Tensor,
        anc: Tensor,
        rows: Tensor,
        tail_len: Tensor,
        backend: str = "cpu",
        on_layer: Callable[[int], None] | None = None,
    ) -> None:
        self._pool = pool
        self._shared = shared
        self._tail_k = tail_k
        self._tail_v = tail_v
        self._anc = anc
        self._rows = rows
        self._tail_len = tail_len
        self._backend = backend
        self._on_layer = on_layer

    @property
    def shared_tokens(self) -> int:
        """See `PacedStage`."""
        return sum(self._shared.lengths) if isinstance(self._shared, SharedPlan) else 0

    def passed(self, layer: int) -> None:
        """See `PacedStage`."""
        if self._on_layer is not None:
            self._on_layer(layer)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`."""
        self.passed(layer)
        pool = self._pool
        o, lse2 = shared_attention(q, pool.k[layer], pool.v[layer], self._shared, scale, self._backend)
        return tail_attention_merge(
            q,
            k,
            v,
            self._tail_k[layer],
            self._tail_v[layer],
            self._anc,
            self._rows,
            self._tail_len,
            o,
            lse2,
            scale,
            self._backend,
        )
