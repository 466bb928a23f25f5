"""Causal attention: the tokens of several prompts in one batch, each over itself and those before it.

The first tokens of a prompt may have been computed earlier: what the new ones make of them, a partial result
of `shared_attention`, is merged in by its log-sum-exp.
"""

from torch import Tensor

from xgr_kernels.attention.causal import cpu, reference
from xgr_kernels.attention.causal.types import Partial

__all__ = ["Partial", "causal_attention"]


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_offsets: list[int],
    scale: float,
    prefix: Partial | None = None,
    backend: str = "cpu",
) -> Tensor:
    """Row r of a prompt attends to rows 0..r of the prompt, and through `prefix` to what came before them.

    q [R, Hq, D]; k, v [R, Hkv, D], Hq a multiple of Hkv; prompt b has the rows from row_offsets[b] up to
    row_offsets[b+1]. prefix None: all prompts begin here. Returns o [R, Hq, D] in q's dtype.
    Raises: ValueError for an unknown backend. There is none for cuda: `paged_attention` with causal=True
    reads a prompt's cached and new tokens from its pages in one call.
    """
    if backend == "cpu":
        return cpu.attend(q, k, v, row_offsets, scale, prefix)
    if backend == "reference":
        return reference.attend(q, k, v, row_offsets, scale, prefix)
    if backend == "cuda":
        raise ValueError(
            "causal_attention has no cuda backend: use paged_attention.PagedAttention, causal=True"
        )
    raise ValueError(f"unknown causal_attention backend {backend!r}: use cpu or reference")
