"""Tiny random checkpoints, one folder per shape, shared by the tests of the model package."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

MakeCheckpoint = Callable[..., Path]

_FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # wide: attention far from uniform, logits of several units
}


def build(family: str, kv_heads: int, seed: int, **overrides: object) -> PreTrainedModel:
    """A random model of `family` with `kv_heads` of 4 heads; biases and norms are random too."""
    config_class, model_class = _FAMILIES[family]
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(
        config_class(**{**_SIZES, "num_key_value_heads": kv_heads, **overrides})
    )
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
        elif "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more threads, and threads that wait for a busy core cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """`make_checkpoint(family, kv_heads, seed=0, shard=None, **config)`: a folder per set of arguments."""
    made: dict[str, Path] = {}

    def make(
        family: str, kv_heads: int, seed: int = 0, shard: str | None = None, **overrides: object
    ) -> Path:
        key = repr((family, kv_heads, seed, shard, sorted(overrides.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{kv_heads}-{seed}")
            model = build(family, kv_heads, seed, **overrides)
            model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
            made[key] = folder
        return made[key]

    return make
