"""Tail attention: the few tokens that each beam has for itself, merged with the shared partial result.

Tail KV never moves: a beam finds its tokens through its ancestor table, and stores its newest one in its row.
"""

from torch import Tensor

from xgr_kernels.attention.tail import cpu, reference


def tail_attention_merge(
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
    backend: str = "cpu",
) -> Tensor:
    """Attention over shared KV (given as its partial result), tail tokens and the newest token.

    q [R, Hq, D]; k, v [R, Hkv, D] the newest token; tail_k, tail_v [T, rows, Hkv, D] of one layer;
    anc [R, T] int64, the tail row of token t, read for t < tail_len[r] only; rows [R] int64 distinct, where
    row r stores; tail_len [R] int64 in [0, T]; o [R, Hq, D], lse2 [R, Hq] (base 2) from `shared_attention`.
    On cuda T is at most 8, the integers may be int32, and o is overwritten and returned: see `cuda.attend`.
    Returns o [R, Hq, D] in q's dtype. Writes k[r], v[r] to tail_k, tail_v at [tail_len[r], rows[r]] where
    tail_len[r] < T: a token of the last step is never read again. T may be 0.
    Raises: ValueError for an unknown backend; ImportError for cuda without Triton.
    """
    if backend == "cpu":
        return cpu.attend(q, k, v, tail_k, tail_v, anc, rows, tail_len, o, lse2, scale)
    if backend == "reference":
        return reference.attend(q, k, v, tail_k, tail_v, anc, rows, tail_len, o, lse2, scale)
    if backend == "cuda":
        from xgr_kernels.attention.tail import cuda

        return cuda.attend(q, k, v, tail_k, tail_v, anc, rows, tail_len, o, lse2, scale)
    raise ValueError(f"unknown tail_attention backend {backend!r}: use cpu, cuda or reference")
