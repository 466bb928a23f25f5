"""The compiled half: every row is read once, while it is in the cache."""

import numpy as np
from numba import prange

from xgr_kernels.cpu.compiled import Array, F, Scalar, exp, kernel


@kernel(fastmath={"reassoc", "nsz", "contract"})
def _root_mean_square(x: Array, eps: Scalar) -> Scalar:
    total = F(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return np.sqrt(total / F(x.size) + eps)


@kernel(fastmath={"contract"})
def _norm(x: Array, weight: Array, eps: Scalar, out: Array) -> None:
    factor = F(1) / _root_mean_square(x, eps)
    for i in range(x.size):
        out[i] = weight[i] * (x[i] * factor)


@kernel(fastmath={"contract"})
def _rotate(x: Array, cos: Array, sin: Array) -> None:
    """In place; cos and sin are of half its size."""
    half = x.size // 2
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cos[i] - second * sin[i]
        x[half + i] = second * cos[i] + first * sin[i]


@kernel(fastmath={"contract"})
def _gate(gates: Array, rest: Array, out: Array) -> None:
    for i in range(out.size):
        x = gates[i]
        power = exp(-abs(x))
        share = F(1) / (F(1) + power)  # of -x if x is negative
        out[i] = x * (share if x >= F(0) else power * share) * rest[i]


@kernel(parallel=True)
def residual_norm(x: Array, delta: Array, weight: Array, eps: Scalar, out: Array) -> None:
    """See `api.residual_norm`; an empty delta adds nothing."""
    for r in prange(x.shape[0]):
        row = x[r]
        if delta.size:
            for i in range(row.size):
                row[i] += delta[r, i]
        _norm(row, weight, eps, out[r])


@kernel()
def _heads(source: Array, cos: Array, sin: Array, weight: Array, eps: Scalar, out: Array) -> None:
    """The heads of one row, normed if there is a weight, and rotated."""
    for h in range(out.shape[0]):
        if weight.size:
            _norm(source[h], weight, eps, out[h])
        else:
            out[h] = source[h]
        _rotate(out[h], cos, sin)


@kernel(parallel=True)
def norm_and_rotate(
    rows: Array,
    cos: Array,
    sin: Array,
    q_norm: Array,
    k_norm: Array,
    eps: Scalar,
    q: Array,
    k: Array,
    v: Array,
) -> None:
    """See `api.norm_and_rotate`; rows [N, heads, D], those of q before k's, and v's last."""
    Hq, Hkv = q.shape[1], k.shape[1]
    for r in prange(rows.shape[0]):
        _heads(rows[r, :Hq], cos[r], sin[r], q_norm, eps, q[r])
        _heads(rows[r, Hq : Hq + Hkv], cos[r], sin[r], k_norm, eps, k[r])
        v[r] = rows[r, Hq + Hkv :]


@kernel(parallel=True)
def gated_silu(gate_up: Array, out: Array) -> None:
    """See `api.gated_silu`."""
    size = out.shape[1]
    for r in prange(out.shape[0]):
        _gate(gate_up[r, :size], gate_up[r, size:], out[r])
