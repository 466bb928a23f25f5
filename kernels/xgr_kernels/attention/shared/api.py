"""Shared attention: what it takes, what it gives, and which backend runs it.

Every beam of a request reads the same prompt KV, so the beams are the rows of one non-causal product.
"""

from torch import Tensor

from xgr_kernels.attention.paged import PagedAttention
from xgr_kernels.attention.shared import cpu, reference
from xgr_kernels.attention.shared.types import SharedPlan

__all__ = ["SharedPlan", "shared_attention"]


def shared_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: SharedPlan | PagedAttention,
    scale: float,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Non-causal attention of each request's rows over its prompt.

    q [R, Hq, D]; k_pages, v_pages [P, page_size, Hkv, D] of one layer, Hq a multiple of Hkv.
    Returns o [R, Hq, D] in q's dtype and lse2 [R, Hq], the log-sum-exp in base 2 (float32; float64 from the
    reference for float64 input). A prompt of length 0 gives o = 0 and lse2 = -inf.
    On cuda `plan` is a `PagedAttention` that was planned for the launch: see its `attend`.
    Raises: ValueError for an unknown backend, or a plan of another one.
    """
    if (backend == "cuda") != isinstance(plan, PagedAttention):
        raise ValueError(f"shared_attention backend {backend!r} was given a {type(plan).__name__}")
    if isinstance(plan, PagedAttention):
        return plan.attend(q, k_pages, v_pages, scale)
    if backend == "cpu":
        return cpu.attend(q, k_pages, v_pages, plan, scale)
    if backend == "reference":
        return reference.attend(q, k_pages, v_pages, plan, scale)
    raise ValueError(f"unknown shared_attention backend {backend!r}: use cpu, cuda or reference")
