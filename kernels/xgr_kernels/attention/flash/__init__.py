"""Flash attention on CPU, which shared and causal attention run on; its reference is theirs."""

from xgr_kernels.attention.flash.cpu import LOG2_E, attend, attend_pages, warm_up

__all__ = ["LOG2_E", "attend", "attend_pages", "warm_up"]
