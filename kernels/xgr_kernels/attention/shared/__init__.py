"""Attention of a request's beams over its one copy of prompt KV."""

from xgr_kernels.attention.shared.api import SharedPlan, shared_attention

__all__ = ["SharedPlan", "shared_attention"]
