"""The two stages: what attention means while prompts are read, and while beams are grown.

A stage is made for one forward. It knows whose rows are in the batch and where their keys and values live,
which the model does not.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xgr_kernels.shared_attention.api import SharedPlan, shared_attention
from xgr_kernels.tail_attention.api import tail_attention_merge
from xgr_runtime.model.kv import KvPool
from xgr_runtime.pages import PageIds


class PrefillStage:
    """Causal attention over several packed prompts; keeps their k and v in the pool.

    `prompts` are (offset, length, pages): rows [offset, offset + length) of the batch are tokens [0, length)
    of the prompt that `pages` hold. They cover the batch in order. `on_layer(layer)` is called when a
    layer's k and v of every prompt are in the pool, before its attention: whoever sends them can begin.
    """

    def __init__(
        self,
        pool: KvPool,
        prompts: Sequence[tuple[int, int, PageIds]],
        on_layer: Callable[[int], None] | None = None,
    ) -> None:
        self._pool = pool
        self._prompts = prompts
        self._on_layer = on_layer

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`."""
        for offset, length, pages in self._prompts:
            rows = slice(offset, offset + length)
            self._pool.write(layer, pages, 0, k[rows], v[rows])
        if self._on_layer is not None:
            self._on_layer(layer)
        spans = [slice(offset, offset + length) for offset, length, _ in self._prompts]
        outputs = [causal_attention(q[rows], k[rows], v[rows], scale) for rows in spans]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Each token attends to itself and those before it. q [L, Hq, D], k and v [L, Hkv, D] -> [L, Hq, D].

    On a CPU torch picks its flash kernel, which reads shared KV heads in place; repeating them first, or
    calling the kernel by its own name, measured the same within noise at 512 and 2,048 tokens (2 and 19 ms a
    layer for 6 heads of 32, 16 and 140 ms for 16 heads of 128, two cores).
    """
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, L, D]
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return o[0].transpose(0, 1)


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
        shared: SharedPlan,
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

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `Stage.attend`."""
        if self._on_layer is not None:
            self._on_layer(layer)
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
