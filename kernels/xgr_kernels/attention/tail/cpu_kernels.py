"""The compiled half of tail attention on CPU: each row reads its few tokens once and merges them.

Keys and values are float32, or the bits of bfloat16 as int16: numba has no such type.
"""

import numpy as np
from numba import prange

from xgr_kernels.cpu.compiled import Array, F, Scalar, exp2, from_bits, kernel


@kernel(fastmath={"contract"})
def _number(stored: Scalar) -> Scalar:
    """A stored number as float32; bfloat16 is its upper half."""
    if isinstance(stored, np.int16):
        return from_bits(np.int32(stored) << np.int32(16))
    return stored


@kernel(fastmath={"reassoc", "nsz", "contract"})
def _dot(q: Array, key: Array) -> Scalar:
    total = F(0)
    for d in range(q.size):
        total += q[d] * _number(key[d])
    return total


@kernel(fastmath={"contract"})
def _add(out: Array, weight: Scalar, value: Array) -> None:
    for d in range(out.size):
        out[d] += weight * _number(value[d])


@kernel()
def _attend_one(
    q: Array,
    k: Array,
    v: Array,
    tail_k: Array,
    tail_v: Array,
    kv: int,
    anc: Array,
    length: int,
    lse2: Scalar,
    scale: Scalar,
    scores: Array,
    out: Array,
) -> None:
    """One query head of one row, which reads KV head `kv`. `out` holds the shared part and becomes the whole.

    The softmax has base 2; the shared part takes part with its log-sum-exp as one more score.
    """
    scores[length] = _dot(q, k) * scale
    top = max(lse2, scores[length])
    for t in range(length):
        scores[t] = _dot(q, tail_k[t, anc[t], kv]) * scale
        top = max(top, scores[t])
    weight = exp2(lse2 - top)
    total = weight
    for d in range(out.size):
        out[d] *= weight
    for t in range(length):
        weight = exp2(scores[t] - top)
        total += weight
        _add(out, weight, tail_v[t, anc[t], kv])
    weight = exp2(scores[length] - top)
    total += weight
    _add(out, weight, v)
    for d in range(out.size):
        out[d] /= total


@kernel(parallel=True)
def attend(
    q: Array,
    k: Array,
    v: Array,
    tail_k: Array,
    tail_v: Array,
    anc: Array,
    rows: Array,
    tail_len: Array,
    out: Array,
    lse2: Array,
    scale: Scalar,
) -> None:
    """See `api.tail_attention_merge`; `out` holds o at first. `scale` includes log2(e).

    Rows store while others read: what they store is no ancestor of another row in this step.
    """
    T, group = tail_k.shape[0], q.shape[1] // k.shape[1]
    for r in prange(q.shape[0]):
        length = tail_len[r]
        scores = np.empty(T + 1, np.float32)
        for h in range(q.shape[1]):
            kv = h // group
            _attend_one(
                q[r, h],
                k[r, kv],
                v[r, kv],
                tail_k,
                tail_v,
                kv,
                anc[r],
                length,
                lse2[r, h],
                scale,
                scores,
                out[r, h],
            )
        if length < T:
            tail_k[length, rows[r]] = k[r]
            tail_v[length, rows[r]] = v[r]
