"""On a GPU: launches the Triton kernels. Nothing waits for the device: a CUDA graph can capture all of it.

float32, bfloat16 and float16; every tensor is contiguous, and rows may be of any width.
"""

import torch
import triton
from torch import Tensor

from xgr_kernels.row_ops import cuda_kernels
from xgr_kernels.row_ops.types import KvSlots

TILE = 1024  # elements of a program: 16-byte loads, and registers for many programs at a time
MOST_WARPS = 16
HEAD_WARPS = 2  # of a tile of heads, whose halves are loaded apart: eight elements of each for a thread


def residual_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """See `api.residual_norm`."""
    _check(x, *(() if delta is None else (delta,)), weight)
    N, H = x.shape
    out = torch.empty_like(x)
    if N:
        BLOCK = triton.next_power_of_2(H)
        cuda_kernels.residual_norm_kernel[(N,)](
            x,
            x if delta is None else delta,
            weight,
            out,
            eps,
            H=H,
            ADDS=delta is not None,
            BLOCK=BLOCK,
            num_warps=warps_for(BLOCK),
        )
    return out


def norm_and_rotate(
    qkv: Tensor,
    heads: tuple[int, int],
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    stored: KvSlots | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `api.norm_and_rotate`; v is a view of qkv, and with `stored` k is one too, not rotated."""
    Hq, Hkv = heads
    N, D = len(qkv), qkv.shape[1] // (Hq + 2 * Hkv)
    _check(qkv, *(norms or ()), *(stored[:2] if stored else ()))
    _check(cos, sin)
    rows = qkv.view(N, Hq + 2 * Hkv, D)
    q, k, v = rows.new_empty(N, Hq, D), rows[:, Hq : Hq + Hkv], rows[:, Hq + Hkv :]
    if stored is None:
        k = rows.new_empty(N, Hkv, D)
    places = stored or KvSlots(k, v, cos)  # what is not stored, no kernel reads
    if N:
        BLOCK_H, BLOCK_D = block_sizes(D)
        heads_in = Hq + (2 * Hkv if stored else Hkv)
        cuda_kernels.norm_and_rotate_kernel[(N, triton.cdiv(heads_in, BLOCK_H))](
            *(qkv, cos, sin, *(norms or (qkv, qkv)), places.slots, q, places.k, places.v),
            eps,
            Hq=Hq,
            Hkv=Hkv,
            HALF=D // 2,
            NORMED=norms is not None,
            STORES=stored is not None,
            BLOCK_H=BLOCK_H,
            BLOCK_D=BLOCK_D,
            num_warps=HEAD_WARPS,
        )
    return q, k, v


def gated_silu(gate_up: Tensor) -> Tensor:
    """See `api.gated_silu`."""
    _check(gate_up)
    N, size = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(N, size)
    if N:
        grid = (N, triton.cdiv(size, TILE))
        cuda_kernels.gated_silu_kernel[grid](gate_up, out, SIZE=size, BLOCK=TILE)
    return out


def warps_for(BLOCK: int) -> int:
    """Of a program that holds a row of so many elements: 16 for each thread, where a row is long enough."""
    return min(max(BLOCK // 512, 1), MOST_WARPS)


def block_sizes(D: int) -> tuple[int, int]:
    """Heads of one program's tile and dimensions of half a head, powers of two."""
    BLOCK_D = triton.next_power_of_2(D // 2)
    return max(1, TILE // (2 * BLOCK_D)), BLOCK_D


def _check(*tensors: Tensor) -> None:
    """A kernel would read something else without a word."""
    dtype = tensors[0].dtype
    for x in tensors:
        if not x.is_contiguous() or x.dtype != dtype:
            raise ValueError(f"{tuple(x.shape)} {x.dtype}, strides {x.stride()}: must be dense {dtype}")
