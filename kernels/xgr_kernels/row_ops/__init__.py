"""What a decoder layer does to each row between its matrix products."""

from xgr_kernels.row_ops.api import gated_silu, norm_and_rotate, residual_norm

__all__ = ["gated_silu", "norm_and_rotate", "residual_norm"]
