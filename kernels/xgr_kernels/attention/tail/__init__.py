"""Attention of beams over their generated tokens, merged with the shared part."""

from xgr_kernels.attention.tail.api import tail_attention_merge

__all__ = ["tail_attention_merge"]
