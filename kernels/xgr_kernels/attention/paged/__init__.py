"""Attention over pages on a GPU, by FlashInfer: of beams to their prompts, and of prompts to themselves.

The CPU needs no such thing of its own: `shared_attention` and `causal_attention` read pages there.
"""

from xgr_kernels.attention.paged.cuda import PagedAttention, quickest
from xgr_kernels.attention.paged.rules import (
    AttentionSizes,
    choose_algorithm,
    device_facts,
    safest_algorithm,
    useful_algorithms,
)
from xgr_kernels.attention.paged.workspace import Workspace

__all__ = [
    "AttentionSizes",
    "PagedAttention",
    "Workspace",
    "choose_algorithm",
    "device_facts",
    "quickest",
    "safest_algorithm",
    "useful_algorithms",
]
