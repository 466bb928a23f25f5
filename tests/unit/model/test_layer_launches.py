"""What a layer launches on a GPU, counted on models without memory: a launch too many costs every layer."""

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
from launches import Launch
from meta_models import decode_launches, meta_models, prefill_launches

from xgr_kernels.row_ops import gated_silu
from xgr_runtime.model.backends import fused

MOST = 10  # of a layer and of what a forward does once, besides products
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 99,
}
ATTENTION = {"attention": 1, "merge": 1}  # the library's, which may be one
OURS = {"residual_norm_kernel": 2, "norm_and_rotate_kernel": 1, "gated_silu_kernel": 1}
ONCE = {"index_select": 1, "mul": 1, "cos": 1, "sin": 1, "residual_norm_kernel": 1}


def counts(launches: list[Launch]) -> tuple[int, Counter[str]]:
    """Products, and the others by name."""
    return sum(x.product for x in launches), Counter(x.name for x in launches if not x.product)


def forward(family: str, layers: int, prefill: bool, library: bool = False) -> tuple[int, Counter[str]]:
    model = meta_models(family, num_hidden_layers=layers, **SIZES)[0 if library else 1]
    return counts(prefill_launches(model, 32, 2, prunes=False) if prefill else decode_launches(model, 8))


@pytest.mark.parametrize("prefill", [False, True], ids=["decode", "prefill"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_launches_of_a_layer_and_of_a_forward(family: str, prefill: bool) -> None:
    (products, two), (more, three) = forward(family, 2, prefill), forward(family, 3, prefill)
    layer = three - two
    assert more - products == 4
    assert layer == Counter(OURS | ATTENTION | ({} if prefill else {"tail_attention_kernel": 1}))
    once = two - layer - layer
    assert once == Counter(ONCE)
    assert layer.total() <= MOST and once.total() <= MOST


def test_an_operation_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "gated_silu", lambda x, kernels: gated_silu(x, kernels) * 1.0)
    _, two = forward("qwen3", 2, prefill=False)
    assert two["mul"] == ONCE["mul"] + 2


def test_the_library_launches_many_more() -> None:
    (_, two), (_, three) = (forward("qwen3", layers, True, library=True) for layers in (2, 3))
    assert (three - two).total() > 40
