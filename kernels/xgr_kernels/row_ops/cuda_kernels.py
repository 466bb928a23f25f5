"""The Triton half: every row is read once. All is computed in float32 and rounded when it is stored."""

import triton
import triton.language as tl


@triton.jit
def residual_norm_kernel(
    p_x: tl.tensor,
    p_delta: tl.tensor,
    p_weight: tl.tensor,
    p_out: tl.tensor,
    eps: float,
    H: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (N,): a program takes a row. See `api.residual_norm`; x and delta [N, H]."""
    i = tl.arange(0, BLOCK)
    live = i < H
    o_row = tl.program_id(0).to(tl.int64) * H + i
    x = tl.load(p_x + o_row, live, 0.0)
    if ADDS:
        delta = tl.load(p_delta + o_row, live, 0.0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(p_x.dtype.element_ty)
        tl.store(p_x + o_row, x, live)
    b_x = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(b_x * b_x, 0) / H + eps)
    weight = tl.load(p_weight + i, live, 0.0).to(tl.float32)
    tl.store(p_out + o_row, weight * (b_x * factor), live)


@triton.jit
def norm_and_rotate_kernel(
    p_qkv: tl.tensor,
    p_cos: tl.tensor,
    p_sin: tl.tensor,
    p_q_norm: tl.tensor,
    p_k_norm: tl.tensor,
    p_slots: tl.tensor,
    p_q: tl.tensor,
    p_k: tl.tensor,
    p_v: tl.tensor,
    eps: float,
    Hq: tl.constexpr,
    Hkv: tl.constexpr,
    HALF: tl.constexpr,
    NORMED: tl.constexpr,
    STORES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (N, blocks of BLOCK_H heads): queries, then keys, then values if they are stored.

    qkv [N, Hq + 2 Hkv, 2 HALF]; cos and sin [N, HALF]. k and v of row r go to place slots[r] of p_k and p_v
    [slots, Hkv, 2 HALF]; without STORES k goes to place r, and values are not touched.
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_head = (tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]  # [BLOCK_H, 1]
    i_dim = tl.arange(0, BLOCK_D)[None, :]  # of the first half
    inside = i_dim < HALF
    is_q = i_head < Hq
    is_k = (i_head >= Hq) & (i_head < Hq + Hkv)
    last = Hq + Hkv
    if STORES:
        last = Hq + 2 * Hkv
    o_in = (i_row * (Hq + 2 * Hkv) + i_head) * (2 * HALF) + i_dim
    live = (i_head < last) & inside
    first = tl.load(p_qkv + o_in, live, 0.0)
    second = tl.load(p_qkv + o_in + HALF, live, 0.0)
    b_first, b_second = first.to(tl.float32), second.to(tl.float32)
    if NORMED:
        squares = tl.sum(b_first * b_first + b_second * b_second, 1)
        factor = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
        b_first = b_first * factor * _weight(p_q_norm, p_k_norm, i_dim, is_q, is_k, inside)
        b_second = b_second * factor * _weight(p_q_norm, p_k_norm, i_dim + HALF, is_q, is_k, inside)
    cos = tl.load(p_cos + i_row * HALF + i_dim, inside, 0.0)
    sin = tl.load(p_sin + i_row * HALF + i_dim, inside, 0.0)
    turned_first = b_first * cos - b_second * sin
    turned_second = b_second * cos + b_first * sin

    o_q = (i_row * Hq + i_head) * (2 * HALF) + i_dim
    tl.store(p_q + o_q, turned_first, is_q & inside)
    tl.store(p_q + o_q + HALF, turned_second, is_q & inside)
    slot = i_row
    if STORES:
        slot = tl.load(p_slots + i_row).to(tl.int64)
    o_k = (slot * Hkv + i_head - Hq) * (2 * HALF) + i_dim
    tl.store(p_k + o_k, turned_first, is_k & inside)
    tl.store(p_k + o_k + HALF, turned_second, is_k & inside)
    if STORES:
        is_v = (i_head >= Hq + Hkv) & (i_head < last)
        o_v = o_k - Hkv * (2 * HALF)
        tl.store(p_v + o_v, first, is_v & inside)
        tl.store(p_v + o_v + HALF, second, is_v & inside)


@triton.jit
def _weight(
    p_q_norm: tl.tensor,
    p_k_norm: tl.tensor,
    i_dim: tl.tensor,
    is_q: tl.tensor,
    is_k: tl.tensor,
    inside: tl.tensor,
) -> tl.tensor:
    """The norm's weight for each head and dimension; 0 where there is none."""
    q_norm = tl.load(p_q_norm + i_dim, is_q & inside, 0.0).to(tl.float32)
    return q_norm + tl.load(p_k_norm + i_dim, is_k & inside, 0.0).to(tl.float32)


@triton.jit
def gated_silu_kernel(
    p_gate_up: tl.tensor, p_out: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Grid (N, blocks of BLOCK). See `api.gated_silu`; gate_up [N, 2 SIZE]."""
    i_row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < SIZE
    o_gate = i_row * (2 * SIZE) + i
    gate = tl.load(p_gate_up + o_gate, live, 0.0).to(tl.float32)
    rest = tl.load(p_gate_up + o_gate + SIZE, live, 0.0).to(tl.float32)
    # A very negative gate is divided by infinity, which is right.
    tl.store(p_out + i_row * SIZE + i, gate / (1.0 + tl.exp(-gate)) * rest, live)
