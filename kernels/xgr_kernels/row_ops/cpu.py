"""On a CPU: hands tensors to the compiled kernels."""

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.cpu.compiled import one_caller
from xgr_kernels.row_ops import cpu_kernels

_NOTHING = np.empty((0, 0), np.float32)
_NO_WEIGHT = np.empty(0, np.float32)


def residual_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """See `api.residual_norm`."""
    out = torch.empty_like(x)
    added = _NOTHING if delta is None else delta.numpy()
    with one_caller:
        cpu_kernels.residual_norm(x.numpy(), added, weight.numpy(), np.float32(eps), out.numpy())
    return out


def norm_and_rotate(
    qkv: Tensor,
    heads: tuple[int, int],
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `api.norm_and_rotate`."""
    Hq, Hkv = heads
    rows = qkv.view(len(qkv), Hq + 2 * Hkv, qkv.shape[1] // (Hq + 2 * Hkv))
    q, k, v = (torch.empty(len(rows), heads, rows.shape[2]) for heads in (Hq, Hkv, Hkv))
    out = (q.numpy(), k.numpy(), v.numpy())
    weights = (_NO_WEIGHT, _NO_WEIGHT) if norms is None else tuple(weight.numpy() for weight in norms)
    with one_caller:
        cpu_kernels.norm_and_rotate(rows.numpy(), cos.numpy(), sin.numpy(), *weights, np.float32(eps), *out)
    return q, k, v


def gated_silu(gate_up: Tensor) -> Tensor:
    """See `api.gated_silu`."""
    out = torch.empty(len(gate_up), gate_up.shape[1] // 2)
    with one_caller:
        cpu_kernels.gated_silu(gate_up.numpy(), out.numpy())
    return out


def warm_up() -> None:
    """Compiles the kernels; their types are those of every call."""
    x, norm, angle = torch.zeros(1, 2), torch.ones(2), torch.zeros(1, 1)
    residual_norm(x, x, norm, 1.0)
    norm_and_rotate(torch.zeros(1, 6), (1, 1), angle, angle, (norm, norm), 1.0)
    gated_silu(x)
