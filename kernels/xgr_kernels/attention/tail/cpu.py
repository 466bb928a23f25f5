"""Tail attention on CPU: hands tensors to the compiled kernel, without a copy where they are contiguous.

The shared partial result enters the softmax as one more score, its log-sum-exp, whose value is o.
"""

import math

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.attention.tail import cpu_kernels
from xgr_kernels.cpu.compiled import one_caller

LOG2_E = 1.0 / math.log(2.0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tail_k: Tensor,
    tail_v: Tensor,
    anc: Tensor,
    rows: Tensor,
    tail_len: Tensor,
    o: Tensor,
    lse2: Tensor,
    scale: float,
) -> Tensor:
    """See `api.tail_attention_merge`."""
    out = o.float().contiguous()
    if out is o:
        out = o.clone()
    if not len(q):
        return o
    integers = (x.contiguous().numpy() for x in (anc, rows, tail_len))
    with one_caller:
        cpu_kernels.attend(
            q.float().contiguous().numpy(),
            *(_stored(x.contiguous()) for x in (k, v)),
            *(_stored(x) for x in (tail_k, tail_v)),
            *integers,
            out.numpy(),
            lse2.contiguous().numpy(),
            np.float32(scale * LOG2_E),
        )
    return out.to(q.dtype)


def warm_up(dtype: torch.dtype) -> None:
    """Compiles the kernel for keys and values of a type."""
    x, no_tail = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype)
    row = torch.zeros(1, dtype=torch.int64)
    attend(x, x, x, no_tail, no_tail, row[None], row, row, x.float(), torch.zeros(1, 1), 1.0)


def _stored(x: Tensor) -> np.ndarray:
    """Keys or values as numba takes them."""
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
