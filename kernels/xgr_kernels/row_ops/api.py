"""Norm, rotary embedding and gate, each in one pass over the rows.

A library's layers spend several passes on each, and as much time in starting them as in computing. On a CPU
all is float32; on a GPU rows may be bfloat16 or float16, computed in float32. Every tensor is contiguous.
"""

from torch import Tensor

from xgr_kernels.row_ops import cpu, reference
from xgr_kernels.row_ops.types import KvSlots


def residual_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, backend: str = "cpu"
) -> Tensor:
    """Adds `delta` [N, H] to the residual stream `x` [N, H] in place; returns weight [H] * RMS norm of it.

    Raises: ValueError for an unknown backend; ImportError for cuda without Triton.
    """
    if backend == "cpu":
        return cpu.residual_norm(x, delta, weight, eps)
    if backend == "reference":
        return reference.residual_norm(x, delta, weight, eps)
    if backend == "cuda":
        from xgr_kernels.row_ops import cuda

        return cuda.residual_norm(x, delta, weight, eps)
    raise ValueError(f"unknown row_ops backend {backend!r}: use cpu, cuda or reference")


def norm_and_rotate(
    qkv: Tensor,
    heads: tuple[int, int],
    cos: Tensor,
    sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    backend: str = "cpu",
    stored: KvSlots | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ready for attention, out of one product.

    qkv [N, (Hq + 2 Hkv) * D] holds the heads of all three -> q [N, Hq, D], k and v [N, Hkv, D], as attention
    takes them; v may be a view of qkv. heads is (Hq, Hkv); cos and sin [N, D / 2] float32 belong to the rows'
    positions; norms are the RMS norms' weights [D] of q and of k, if a model norms its heads. Rotation is of
    halves, as in Llama. With `stored`, for cuda alone, k and v are put there; the k that is returned is then
    of no use. Raises: ValueError for an unknown backend; ImportError for cuda without Triton.
    """
    assert stored is None or backend == "cuda"
    if backend == "cpu":
        return cpu.norm_and_rotate(qkv, heads, cos, sin, norms, eps)
    if backend == "reference":
        return reference.norm_and_rotate(qkv, heads, cos, sin, norms, eps)
    if backend == "cuda":
        from xgr_kernels.row_ops import cuda

        return cuda.norm_and_rotate(qkv, heads, cos, sin, norms, eps, stored)
    raise ValueError(f"unknown row_ops backend {backend!r}: use cpu, cuda or reference")


def gated_silu(gate_up: Tensor, backend: str = "cpu") -> Tensor:
    """gate_up [N, 2 I], gates before the rest -> SiLU(gates) * rest, [N, I].

    Raises: ValueError for an unknown backend; ImportError for cuda without Triton.
    """
    if backend == "cpu":
        return cpu.gated_silu(gate_up)
    if backend == "reference":
        return reference.gated_silu(gate_up)
    if backend == "cuda":
        from xgr_kernels.row_ops import cuda

        return cuda.gated_silu(gate_up)
    raise ValueError(f"unknown row_ops backend {backend!r}: use cpu, cuda or reference")
