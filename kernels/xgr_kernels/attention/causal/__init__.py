"""Attention of packed prompts over themselves, merged with what precedes them."""

from xgr_kernels.attention.causal.api import Partial, causal_attention

__all__ = ["Partial", "causal_attention"]
