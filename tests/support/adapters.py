"""Adapters as PEFT saves them, with random weights, and what they make of their base by plain arithmetic."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NEUTRAL: dict[str, Any] = {  # of what PEFT 0.21 writes
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "lora_dropout": 0.05,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
    "eva_config": None,
    "r": 4,
    "lora_alpha": 16,
}
PREFIX = "base_model.model."


@dataclass
class MadeAdapter:
    """The weights of a base, what an adapter of them holds, and what the two make together."""

    base: Path
    targets: Sequence[str] = ("q_proj", "v_proj", "o_proj")
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(7)
        self.weights = load_file(self.base / "model.safetensors")
        self.tensors: dict[str, Tensor] = {}
        self.right = {name: weight.double() for name, weight in self.weights.items()}
        self.settings = {**NEUTRAL, "target_modules": [*self.targets], **self.settings}

    def add_products(self, scaling: Callable[[str], tuple[int, float]], kept: str = "") -> None:
        """Two matrices for each target, of the rank and with the factor that `scaling` gives for its name."""
        for name, weight in self.weights.items():
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] not in self.targets or not re.search(kept, name):
                continue
            rank, factor = scaling(module)
            a, b = torch.randn(rank, weight.shape[1]) / 8, torch.randn(weight.shape[0], rank) / 8
            self.tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            self.right[name] = self.right[name] + factor * b.double() @ a.double()

    def replace(self, name: str, saved_as: str, rows: int = 0) -> Tensor:
        """Another weight in the place of this one, with as many rows."""
        shape = self.weights.get(name, self.weights["model.embed_tokens.weight"]).shape
        weight = torch.randn(rows or shape[0], *shape[1:]) / 4
        self.tensors[saved_as] = weight
        self.right[name] = weight.double()
        return weight

    def save(self, folder: Path, **settings: Any) -> Path:
        """As `PeftModel.save_pretrained` does."""
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({**self.settings, **settings}))
        tensors = {PREFIX + name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder
