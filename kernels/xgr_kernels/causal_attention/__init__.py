"""Attention of packed prompts over themselves, merged with what precedes them."""

from xgr_kernels.causal_attention.api import Partial, causal_attention

__all__ = ["Partial", "causal_attention"]
