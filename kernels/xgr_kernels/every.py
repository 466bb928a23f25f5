"""All kernels of a CPU at once: for whoever compiles them ahead."""

import torch

from xgr_kernels.attention import flash
from xgr_kernels.attention.tail import cpu as tail_attention
from xgr_kernels.beam_select import api as beam_select
from xgr_kernels.cpu.compiled import compile_thread_masks
from xgr_kernels.row_ops import cpu as row_ops


def compile_all(dtype: torch.dtype) -> None:
    """Every kernel that a model of this type needs: a minute once, then read from where they are kept."""
    beam_select.warm_up()
    flash.warm_up(dtype)
    tail_attention.warm_up(dtype)
    row_ops.warm_up()
    compile_thread_masks()
