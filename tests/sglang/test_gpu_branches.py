"""SGLang's layers as a GPU runs them: captured, and by kernels that change q, k and hidden states in place.

References on the CPU stand in the place of these kernels, with the same arguments and the same effects. What
our stages and the pruned last layer make of such tensors must be what they make of fresh ones.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from beams import Run
from checkpoints import MakeCheckpoint
from read_backs import forward_without_read_back
from sglang.srt.layers import activation, layernorm
from sglang.srt.layers.rotary_embedding import base as rotary
from sglang.srt.models import utils as models_utils
from torch import Tensor, nn

from xgr_runtime.model.backends import last_layer
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.sglang.backend import SGLangBackend

TOLERANCE = 1e-4  # float32: sums in another order, over three layers and logits of a few units
WHOLE_HEADS = (64, 128, 256, 512)  # head sizes that its rotary kernel is made for; others have another one


class InPlaceKernels:
    """SGLang's kernels by name, with a count of their calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def rmsnorm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        self._called("rmsnorm", x)
        return normed(x, weight, eps)

    def fused_add_rmsnorm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
        """residual becomes the sum, x its norm."""
        self._called("fused_add_rmsnorm", x, residual)
        assert x.data_ptr() != residual.data_ptr()
        residual += x
        x.copy_(normed(residual, weight, eps))

    def fused_inplace_qknorm(
        self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, head_dim: int, eps: float
    ) -> None:
        """q [N, Hq, D] and k [N, Hkv, D], views of one projection."""
        self._called("fused_inplace_qknorm", q, k)
        assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() and q.shape[-1] == head_dim
        q.copy_(normed(q, q_weight, eps))
        k.copy_(normed(k, k_weight, eps))

    def apply_rope_with_cos_sin_cache_inplace(
        self,
        q: Tensor,
        k: Tensor,
        cos_sin_cache: Tensor,
        positions: Tensor,
        *,
        is_neox: bool,
        fused_args: object = None,
    ) -> None:
        """q [N, Hq, D] and k [N, Hkv, D]."""
        self._called("apply_rope_with_cos_sin_cache_inplace", q, k)
        assert fused_args is None, "nobody else writes our KV"
        turn(q, cos_sin_cache[positions], is_neox)
        turn(k, cos_sin_cache[positions], is_neox)

    def rotary_embedding(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool,
    ) -> None:
        """query [N, Hq * D] and key [N, Hkv * D]."""
        self._called("rotary_embedding", query, key)
        for x in (query, key):
            turn(x.view(len(x), -1, head_size), cos_sin_cache[positions], is_neox)

    def silu_and_mul(self, gate_up: Tensor, out: Tensor) -> None:
        self._called("silu_and_mul", gate_up, out)
        gate, up = gate_up.chunk(2, -1)
        out.copy_(nn.functional.silu(gate) * up)

    def _called(self, name: str, *tensors: Tensor) -> None:
        self.calls[name] += 1
        assert all(x.stride(-1) == 1 for x in tensors), "kernels read rows whose numbers lie together"


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The root mean square norm over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def turn(x: Tensor, cos_sin: Tensor, is_neox: bool) -> None:
    """Rotary positions in place: x [N, H, D], cos_sin [N, D]."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, -1)
    first, second = x.chunk(2, -1) if is_neox else (x[..., ::2], x[..., 1::2])
    turned = first * cos - second * sin, second * cos + first * sin
    first.copy_(turned[0])
    second.copy_(turned[1])


def on_a_gpu(backend: SGLangBackend, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Lets the loaded model take the branches of a GPU; counts the calls of each kernel."""
    kernels = InPlaceKernels()
    for module, names in (
        (layernorm, ["rmsnorm", "fused_add_rmsnorm"]),
        (activation, ["silu_and_mul"]),
        (rotary, ["apply_rope_with_cos_sin_cache_inplace"]),
        (models_utils, ["fused_inplace_qknorm"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(kernels, name), raising=False)
    monkeypatch.setattr(models_utils, "_is_cuda", True)
    monkeypatch.setattr(models_utils, "can_use_fused_inplace_qknorm", lambda head_dim, dtype: True)
    for layer in backend._decoder.modules():
        if forward := getattr(layer, "forward_cuda", None):
            monkeypatch.setattr(layer, "_forward_method", forward)  # models share some layers
        if isinstance(layer, rotary.RotaryEmbedding) and layer.head_size not in WHOLE_HEADS:
            monkeypatch.setattr(layer, "use_fallback_kernel", True)
            monkeypatch.setattr(layer, "fallback_rotary_embedding", kernels.rotary_embedding, raising=False)
    return kernels.calls


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_forward_reads_nothing_back(family: str, make_checkpoint: MakeCheckpoint) -> None:
    forward_without_read_back(load_backend("sglang", make_checkpoint(family, 2), "float32"))


NORMS = {"rmsnorm", "fused_add_rmsnorm", "silu_and_mul"}
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "qwen3": ("qwen3", {"head_dim": 64}, {"fused_inplace_qknorm", "apply_rope_with_cos_sin_cache_inplace"}),
    "llama": ("llama", {"head_dim": 64}, {"apply_rope_with_cos_sin_cache_inplace"}),
    "qwen2-D=12": ("qwen2", {}, {"rotary_embedding"}),
}


@pytest.mark.parametrize("case", CASES)
def test_prompts_and_beams_equal_transformers(
    case: str, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, config, own = CASES[case]
    folder = make_checkpoint(family, 2, **config)
    theirs, ours = (
        Run(load_backend("transformers", folder, "float32")),
        load_backend("sglang", folder, "float32"),
    )
    assert isinstance(ours, SGLangBackend) and ours.prunes
    calls = on_a_gpu(ours, monkeypatch)
    assert Run(ours).difference(theirs) <= TOLERANCE
    assert set(calls) == NORMS | own
    assert last_layer.prunes(ours)


def test_rows_that_are_kept_too_late_are_noticed(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass through the last layer adds to its inputs; views of them would be added to twice."""
    ours = load_backend("sglang", make_checkpoint("qwen3", 2, head_dim=64), "float32")
    assert isinstance(ours, SGLangBackend)
    on_a_gpu(ours, monkeypatch)
    monkeypatch.setattr(Tensor, "index_select", lambda x, dim, keep: x[keep[0] :: int(keep[1] - keep[0])])
    assert not last_layer.prunes(ours)
