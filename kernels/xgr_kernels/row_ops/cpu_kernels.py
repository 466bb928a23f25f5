"""The compiled half: every row is read once, while it is in the cache."""

import numpy as np
from numba import prange

from xgr_kernels.compiled import Array, F, Scalar, exp, kernel


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
    half = x.size // 2
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cos[i] - second * sin[i]
        x[half + i] = second * cos[half + i] + first * sin[half + i]


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


@kernel(parallel=True)
def norm_and_rotate(
    rows: Array, Hq: int, rotated: int, cos: Array, sin: Array, q_norm: Array, k_norm: Array, eps: Scalar
) -> None:
    """See `api.norm_and_rotate`; rows [N, heads, D], of which the first `rotated` are q's and k's."""
    for r in prange(rows.shape[0]):
        for h in range(rotated):
            head = rows[r, h]
            if q_norm.size:
                _norm(head, q_norm if h < Hq else k_norm, eps, head)
            _rotate(head, cos[r], sin[r])


@kernel(parallel=True)
def gated_silu(gate_up: Array, out: Array) -> None:
    """See `api.gated_silu`."""
    size = out.shape[1]
    for r in prange(out.shape[0]):
        _gate(gate_up[r, :size], gate_up[r, size:], out[r])
