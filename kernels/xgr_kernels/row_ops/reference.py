"""The same by definition, as tensor operations: the yardstick for the compiled kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def residual_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """See `api.residual_norm`."""
    if delta is not None:
        x += delta
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


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
    q, k, v = rows[:, :Hq], rows[:, Hq : Hq + Hkv], rows[:, Hq + Hkv :]
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    for x, weight in zip((q, k), norms or (None, None), strict=True):
        normed = x if weight is None else residual_norm(x, None, weight, eps)
        first, second = normed.chunk(2, dim=-1)
        turned = [first * c - second * s, second * c + first * s]
        x.copy_(torch.cat(turned, dim=-1))
    return q.contiguous(), k.contiguous(), v.contiguous()


def gated_silu(gate_up: Tensor) -> Tensor:
    """See `api.gated_silu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
