"""Attention over pages in Triton, for head sizes and number types that FlashInfer has no kernel for.

A program takes a tile of one request's rows, with all query heads of one KV head packed into it, and walks
its keys with a running softmax. Names: p_ pointer, b_ block, i_ index.
"""

import triton
import triton.language as tl

# Columns of a tile, int32
FIRST_ROW = tl.constexpr(0)
END_ROW = tl.constexpr(1)  # of its request; a tile with FIRST_ROW >= END_ROW is unused
KEYS = tl.constexpr(2)
FIRST_PAGE = tl.constexpr(3)  # of its request, in the list of pages
COLUMNS = tl.constexpr(4)

NO_KEYS = tl.constexpr(-50000.0)  # the log-sum-exp of nothing, as FlashInfer says it


@triton.jit
def paged_attention_kernel(
    p_q: tl.tensor,
    p_k: tl.tensor,
    p_v: tl.tensor,
    p_tiles: tl.tensor,
    p_pages: tl.tensor,
    p_o: tl.tensor,
    p_lse2: tl.tensor,
    scale2: float,  # times a dot product it gives a score in base 2
    q_row: int,
    q_head: int,
    page: int,
    token: int,
    kv_head: int,
    Hq: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (tiles, Hkv). BLOCK_M // GROUP rows of q and o [R, Hq, D] a tile; lane i is head i % GROUP.

    k and v [P, PAGE, Hkv, D] have the same strides, o and lse2 [R, Hq] are dense. If CAUSAL, the last row of
    a request sees all its keys, each row before it one less.
    """
    p_tile = p_tiles + tl.program_id(0) * COLUMNS
    first_row = tl.load(p_tile + FIRST_ROW)
    end_row = tl.load(p_tile + END_ROW)
    if first_row >= end_row:
        return
    keys = tl.load(p_tile + KEYS)
    p_list = p_pages + tl.load(p_tile + FIRST_PAGE)
    i_kv_head = tl.program_id(1)
    i_lane = tl.arange(0, BLOCK_M)
    i_row = first_row + i_lane // GROUP
    i_head = i_kv_head * GROUP + i_lane % GROUP
    live = (i_lane // GROUP < BLOCK_M // GROUP) & (i_row < end_row)  # [BLOCK_M]
    i_dim = tl.arange(0, BLOCK_D)
    inside = live[:, None] & (i_dim < D)[None, :]  # [BLOCK_M, BLOCK_D]
    at_q = i_row.to(tl.int64)[:, None] * q_row + i_head[:, None] * q_head + i_dim[None, :]
    b_q = tl.load(p_q + at_q, mask=inside, other=0.0)

    seen = keys + i_lane * 0  # [BLOCK_M]
    most = keys
    if CAUSAL:
        seen = keys - (end_row - 1 - i_row)
        most = tl.minimum(keys, keys - (end_row - first_row) + BLOCK_M // GROUP)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for at in tl.range(0, most, BLOCK_N, num_stages=1):
        i_key = at + tl.arange(0, BLOCK_N)
        there = i_key < keys
        i_page = tl.load(p_list + i_key // PAGE, mask=there, other=0).to(tl.int64)
        at_key = i_page * page + (i_key % PAGE) * token + i_kv_head * kv_head
        at_kv = at_key[:, None] + i_dim[None, :]
        known = there[:, None] & (i_dim < D)[None, :]
        b_k = tl.load(p_k + at_kv, mask=known, other=0.0)
        b_v = tl.load(p_v + at_kv, mask=known, other=0.0)
        score = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * scale2  # [BLOCK_M, BLOCK_N]
        sees = there[None, :] & (i_key[None, :] < seen[:, None])
        score = tl.where(sees, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        base = tl.where(higher == -float("inf"), 0.0, higher)  # a row that has seen no key yet
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, axis=1)
        b_sum = b_sum * shrink[:, None] + tl.dot(weight.to(b_v.dtype), b_v, input_precision="tf32x3")
        top = higher

    none = total == 0  # a NaN is not
    total = tl.where(none, 1.0, total)
    at_o = i_row.to(tl.int64) * Hq + i_head
    o = b_sum / total[:, None]
    tl.store(p_o + at_o[:, None] * D + i_dim[None, :], o.to(p_o.dtype.element_ty), mask=inside)
    tl.store(p_lse2 + at_o, tl.where(none, NO_KEYS, top + tl.log2(total)), mask=live)
