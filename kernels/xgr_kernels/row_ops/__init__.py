"""What a decoder layer does to each row between its matrix products."""

from xgr_kernels.row_ops.api import gated_silu, norm_and_rotate, residual_norm
from xgr_kernels.row_ops.types import KvSlots

__all__ = ["KvSlots", "gated_silu", "norm_and_rotate", "residual_norm"]
