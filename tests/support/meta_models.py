"""Models of published sizes without memory, and what a decode step and a prefill layer of them launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from launches import Launch, recorded
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from xgr_kernels.attention.paged import PagedAttention
from xgr_runtime.model.backends.cuda import CudaBackend, JoinedWeights
from xgr_runtime.model.backends.fused import LayerFacts
from xgr_runtime.model.backends.huggingface import Checkpoint
from xgr_runtime.model.backends.transformers import TransformersBackend
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.memory.kv_memory import private_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import CascadeStage, PagedPrefillStage

META = torch.device("meta")
PAGE = 16


def meta_models(family: str, **sizes: Any) -> tuple[ModelBackend, ModelBackend]:
    """The library's layers and ours, in bfloat16."""
    config = AutoConfig.for_model(family, **sizes)
    models: Any = AutoModelForCausalLM
    with META:
        model = models.from_config(config, dtype=torch.bfloat16, attn_implementation="xgr")
    checkpoint = Checkpoint(Path(), config, "")
    library = TransformersBackend(model, checkpoint, "bfloat16")
    identity = library.identity
    weights = JoinedWeights(dict(model.named_parameters(remove_duplicate=False)), identity.layers)
    facts = LayerFacts(
        identity,
        library.q_heads,
        library.max_positions,
        scale=identity.head_dim**-0.5,
        eps=1e-6,
        head_eps=1e-6 if family == "qwen3" else None,
        tied=bool(config.tie_word_embeddings),
        frequencies=[1.0] * (identity.head_dim // 2),
        rotary_scale=1.0,
    )
    return library, CudaBackend(facts, weights.by_name())


def decode_launches(model: ModelBackend, rows: int) -> list[Launch]:
    """Of one step of `rows` beams, without the head."""
    identity = model.identity
    shape = (identity.layers, 1, rows, identity.kv_heads, identity.head_dim)
    tail = torch.empty(shape, dtype=torch.bfloat16, device=META)
    integers = torch.empty(rows, dtype=torch.int64, device=META)
    attention = _Attention()
    stage = CascadeStage(
        _pool(model), attention, tail, tail, integers[:, None], integers, integers, backend="cuda"
    )
    with recorded() as attention.made:
        model.forward(integers, integers, stage)
    return attention.made


def prefill_launches(model: ModelBackend, tokens: int, prompts: int, prunes: bool) -> list[Launch]:
    """Of one batch; `prunes`: the last layer goes on with the prompts' last tokens alone."""
    integers = torch.empty(tokens, dtype=torch.int64, device=META)
    keep = integers[:prompts] if prunes else None
    attention = _Attention()
    stage = PagedPrefillStage(_pool(model), integers, attention, lambda layer: None, keep)
    with recorded() as attention.made:
        model.forward(integers, integers, stage, keep)
    return attention.made


def _pool(model: ModelBackend) -> KvPool:
    return KvPool(model.identity, 1, PAGE, private_memory(model.identity, 1, PAGE, META))


class _Attention(PagedAttention):
    """FlashInfer's place: its kernel, and the one that merges split keys."""

    def __init__(self) -> None:
        self.made: list[Launch] = []

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        self.made += [Launch("attention", 0.0, 0.0), Launch("merge", 0.0, 0.0)]
        return torch.empty_like(q), torch.empty(q.shape[:2], device=META)
