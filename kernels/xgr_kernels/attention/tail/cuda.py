"""Tail attention on a GPU: one Triton kernel gathers, folds, merges and stores.

A row has a handful of tokens, so this is bound by reading q, o, k and v once; there is no matrix to multiply.
A program takes one row and a block of query heads, each beside the KV head of its group: any ratio of heads
fits without padding, and keys that a group reads again come from the cache.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.0 / math.log(2.0)
MOST_TAIL_TOKENS = 8  # the loop over them is unrolled
TILE = 1024  # elements of q that one program holds: 16-byte loads, and registers for many programs at a time
WARPS = 4


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
    """See `api.tail_attention_merge`, with these differences: o is overwritten and returned.

    anc, rows and tail_len may be int32; q, k, v and the integers may be strided views whose last dimension is
    dense (integers: any strides); tail_k and tail_v are laid out alike; o and lse2 are contiguous. T <= 8.
    An lse2 of -inf, or FlashInfer's -50,000, marks an empty shared part; its o must be finite.
    A padding row may hold any finite q, k, v, o and lse2. It stores as other rows do: give it an entry of
    `rows` that no other row has (say, rows = arange over all of them), or a tail_len of T or more. The first
    tail_len entries of its anc must be rows that exist and hold finite numbers; tail_len 0 reads none.
    Nothing waits for the device and nothing is allocated: a CUDA graph can capture it.
    Raises: ValueError for layouts that the kernel does not read.
    """
    _check(q, k, v, tail_k, tail_v, o, lse2)
    R, Hq, D = q.shape
    if R == 0:
        return o
    BLOCK_H, BLOCK_D = block_sizes(Hq, D)
    tail_attention_kernel[(R, triton.cdiv(Hq, BLOCK_H))](
        *(q, k, v, tail_k, tail_v, anc, rows, tail_len, o, lse2),
        scale * LOG2_E,
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *tail_k.stride()[:3]),
        *(*anc.stride(), rows.stride(0), tail_len.stride(0)),
        Hq=Hq,
        GROUP=Hq // k.shape[1],
        D=D,
        T=tail_k.shape[0],
        BLOCK_H=BLOCK_H,
        BLOCK_D=BLOCK_D,
        num_warps=WARPS,
    )
    return o


def block_sizes(Hq: int, D: int) -> tuple[int, int]:
    """Query heads and dimensions of one program's tile, powers of two."""
    BLOCK_D = triton.next_power_of_2(D)
    return min(max(1, TILE // BLOCK_D), triton.next_power_of_2(Hq)), BLOCK_D


def _check(q: Tensor, k: Tensor, v: Tensor, tail_k: Tensor, tail_v: Tensor, o: Tensor, lse2: Tensor) -> None:
    if tail_k.shape[0] > MOST_TAIL_TOKENS:
        raise ValueError(f"{tail_k.shape[0]} tail tokens: the cuda backend takes at most {MOST_TAIL_TOKENS}")
    if any(x.stride(-1) != 1 for x in (q, k, v, tail_k, tail_v)):
        raise ValueError("the last dimension of q, k, v, tail_k and tail_v must be dense")
    if tail_k.stride() != tail_v.stride():
        raise ValueError(f"tail_k and tail_v must be laid out alike: {tail_k.stride()}, {tail_v.stride()}")
    if o.shape != q.shape or o.dtype != q.dtype or not o.is_contiguous():
        raise ValueError(f"o must be contiguous, {tuple(q.shape)} and {q.dtype}, as q is")
    if lse2.shape != q.shape[:2] or lse2.dtype != torch.float32 or not lse2.is_contiguous():
        raise ValueError(f"lse2 must be contiguous, {tuple(q.shape[:2])} and float32")


@triton.jit
def tail_attention_kernel(
    p_q: tl.tensor,
    p_k: tl.tensor,
    p_v: tl.tensor,
    p_tail_k: tl.tensor,
    p_tail_v: tl.tensor,
    p_anc: tl.tensor,
    p_rows: tl.tensor,
    p_tail_len: tl.tensor,
    p_o: tl.tensor,
    p_lse2: tl.tensor,
    scale2: float,  # times a dot product it gives a score in base 2
    q_row: int,
    q_head: int,
    k_row: int,
    k_head: int,
    v_row: int,
    v_head: int,
    tail_token: int,
    tail_row: int,
    tail_head: int,
    anc_row: int,
    anc_token: int,
    rows_row: int,
    tail_len_row: int,
    Hq: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (R, blocks of BLOCK_H query heads). A running softmax over newest token, shared part and tail."""
    i_row = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # [BLOCK_H]
    i_dim = tl.arange(0, BLOCK_D)[None, :]
    i_kv_head = (i_head // GROUP)[:, None]
    live = (i_head < Hq)[:, None] & (i_dim < D)  # [BLOCK_H, BLOCK_D]
    o_lse = i_row * Hq + i_head
    o_out = o_lse[:, None] * D + i_dim
    tail_len = tl.load(p_tail_len + i_row * tail_len_row).to(tl.int64)

    b_q = tl.load(p_q + i_row * q_row + i_head[:, None] * q_head + i_dim, live, 0.0).to(tl.float32)
    b_k = tl.load(p_k + i_row * k_row + i_kv_head * k_head + i_dim, live, 0.0)
    b_v = tl.load(p_v + i_row * v_row + i_kv_head * v_head + i_dim, live, 0.0)

    # The newest token comes first: it always counts, so the running maximum is finite from here on.
    top = tl.sum(b_q * b_k.to(tl.float32), 1) * scale2  # [BLOCK_H]
    total = tl.full([BLOCK_H], 1.0, tl.float32)
    b_sum = b_v.to(tl.float32)

    shared = tl.load(p_lse2 + o_lse, i_head < Hq, -float("inf"))
    b_shared = tl.load(p_o + o_out, live, 0.0).to(tl.float32)
    top, total, b_sum = _fold(top, total, b_sum, shared, b_shared)

    for t in tl.static_range(T):
        held = t < tail_len
        ancestor = tl.load(p_anc + i_row * anc_row + t * anc_token, held, 0).to(tl.int64)
        o_tail = t * tail_token + ancestor * tail_row + i_kv_head * tail_head + i_dim
        b_tail_k = tl.load(p_tail_k + o_tail, live & held, 0.0).to(tl.float32)
        b_tail_v = tl.load(p_tail_v + o_tail, live & held, 0.0).to(tl.float32)
        score = tl.where(held, tl.sum(b_q * b_tail_k, 1) * scale2, -float("inf"))
        top, total, b_sum = _fold(top, total, b_sum, score, b_tail_v)

    tl.store(p_o + o_out, b_sum / total[:, None], live)

    if T > 0:
        kept = live & (i_head % GROUP == 0)[:, None] & (tail_len < T)  # each KV head once
        row = tl.load(p_rows + i_row * rows_row).to(tl.int64)
        o_tail = tail_len * tail_token + row * tail_row + i_kv_head * tail_head + i_dim
        tl.store(p_tail_k + o_tail, b_k, kept)
        tl.store(p_tail_v + o_tail, b_v, kept)


@triton.jit
def _fold(
    top: tl.tensor, total: tl.tensor, b_sum: tl.tensor, score: tl.tensor, b_value: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One more score [H] and its value [H, D] enter the running softmax; a score of -inf changes nothing."""
    higher = tl.maximum(top, score)
    old, new = tl.exp2(top - higher), tl.exp2(score - higher)
    return higher, total * old + new, b_sum * old[:, None] + b_value * new[:, None]
