"""Flash attention on CPU: hands tensors to the compiled kernel, without a copy where they are contiguous."""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from xgr_kernels.attention.flash import cpu_kernels
from xgr_kernels.cpu.compiled import one_caller

LOG2_E = 1.0 / math.log(2.0)
_ONE_PAGE = np.zeros(1, np.int32)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse2: Tensor,
    scale: float,
    causal: bool = False,
    merge: bool = False,
) -> None:
    """q [R, Hq, D] over k and v [L, Hkv, D], neither empty; fills o [R, Hq, D] and lse2 [R, Hq], float32.

    causal: the rows are the last R of the L tokens, and each sees itself and those before it. merge: o and
    lse2 hold what the rows made of other keys, 0 and -inf where there were none, and become the whole.
    """
    attend_pages(q, (k[None], v[None]), _ONE_PAGE, len(k), o, lse2, scale, causal, merge)


def attend_pages(
    q: Tensor,
    pool: tuple[Tensor, Tensor],
    pages: np.ndarray,
    length: int,
    o: Tensor,
    lse2: Tensor,
    scale: float,
    causal: bool = False,
    merge: bool = False,
) -> None:
    """`attend`, to `length` tokens in `pages` of k and v [P, page_size, Hkv, D], read where they lie."""
    k, v = pool
    with one_caller:
        cpu_kernels.attend(
            q.float().contiguous().numpy(),
            _stored(k),
            _stored(v),
            np.array(pages, np.int32),  # numba would compile anew for one that is read-only
            length,
            o.numpy(),
            lse2.numpy(),
            np.float32(scale * LOG2_E),
            length - len(q) + 1 if causal else length,
            merge,
            numba.get_num_threads(),
        )


def warm_up(dtype: torch.dtype) -> None:
    """Compiles the kernel for keys and values of a type: 10 s once, then read from numba's cache."""
    x = torch.zeros(1, 1, 1, dtype=dtype)
    attend(x, x, x, torch.zeros(1, 1, 1), torch.zeros(1, 1), 1.0)


def _stored(x: Tensor) -> np.ndarray:
    """Keys or values as numba takes them."""
    x = x.contiguous()
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.float().numpy()
