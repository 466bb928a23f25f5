"""Tiny random checkpoints in Hugging Face form, of any architecture that the library knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

MakeCheckpoint = Callable[..., Path]

_models: Any = AutoModelForCausalLM
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # wide: attention far from uniform, logits of several units
    "pad_token_id": None,  # some architectures' default lies beyond so small a vocabulary
}


def build(family: str, kv_heads: int, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random model of `family`, a model_type, with `kv_heads` of 4 heads; biases and norms are random."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_SIZES, "num_key_value_heads": kv_heads, **overrides})
    model: PreTrainedModel = _models.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
        elif "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def checkpoint_maker(make_folder: Callable[[str], Path]) -> MakeCheckpoint:
    """`make(family, kv_heads, seed=0, shard=None, **config)`: a folder, the same for the same arguments."""
    made: dict[str, Path] = {}

    def make(
        family: str, kv_heads: int, seed: int = 0, shard: str | None = None, **overrides: object
    ) -> Path:
        key = repr((family, kv_heads, seed, shard, sorted(overrides.items())))
        if key not in made:
            folder = make_folder(f"{family}-{kv_heads}-{seed}")
            model = build(family, kv_heads, seed, **overrides)
            more: dict[str, Any] = {"max_shard_size": shard} if shard else {}
            model.save_pretrained(folder, **more)
            made[key] = folder
        return made[key]

    return make
