"""Checkpoints of random weights in published sizes, and catalogs over their vocabularies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floors import Heads, Shape
from lab import Lab
from made_catalogs import build_from_arrays
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from xgr_kernels.trie import Trie
from xgr_runtime.catalog import Catalog
from xgr_runtime.model.choice import BACKENDS

DEPTH = 3
LAYERS = tuple(name for name in BACKENDS if name != "auto")  # of a checkpoint: every way to run them
TOY_LAYERS = ("transformers",)  # what every machine has
PACKED = {"packed-8x1k": [1024] * 8, "packed-2x4k": [4096] * 2, "one-1k": [1024]}  # prompts

# layers, hidden, intermediate, query heads, KV heads, head dim, vocabulary: as published, all with tied heads
SIZES = {
    "0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "1.7B": (28, 2048, 6144, 16, 8, 128, 151936),
    "4B": (36, 2560, 9728, 32, 8, 128, 151936),
    "small": (4, 256, 512, 4, 2, 128, 1000),
    "toy": (2, 32, 48, 4, 2, 128, 97),
}


@dataclass(frozen=True)
class Made:
    """A checkpoint and a catalog that fits it."""

    name: str
    folder: Path
    catalog_path: Path
    catalog: Catalog

    @property
    def shape(self) -> Shape:
        """For floors."""
        return shape_of(self.name)

    @property
    def trie(self) -> Trie:
        """As the kernels take it."""
        return self.catalog.trie


def shape_of(name: str) -> Shape:
    """Sizes of a named checkpoint."""
    layers, hidden, intermediate, q_heads, kv_heads, head_dim, vocab = SIZES[name]
    return Shape(layers, hidden, intermediate, vocab, Heads(q_heads, kv_heads, head_dim))


def make(lab: Lab, name: str, items: int, codebook: int) -> Made:
    """The checkpoint `name`, once per run, and a catalog of up to `items` SIDs."""
    folder = lab.scratch / f"qwen3-{name}"
    if not (folder / "tokenizer.json").exists():
        _write_checkpoint(lab, name, folder)
    path = lab.scratch / f"catalog-{name}-{items}-{codebook}.xgr"
    if not path.exists():
        _catalog(lab, SIZES[name][-1], items, codebook).save(path)
    return Made(name, folder, path, Catalog.open(path))


def make_to_measure(lab: Lab, name: str) -> Made:
    """With the catalog of all measurements of engines and servers."""
    return make(lab, name, *((60, 24) if lab.toy else (100_000, 8192)))


def _write_checkpoint(lab: Lab, name: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    layers, hidden, intermediate, q_heads, kv_heads, head_dim, vocab = SIZES[name]
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=q_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        # Small models are compared with another implementation: attention far from uniform shows mistakes.
        initializer_range=0.15 if hidden <= 256 else 0.02,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device(lab.where):
        models: Any = AutoModelForCausalLM
        model = models.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    words = {"<unknown>": 0, "<begin>": 1}  # requests carry token ids: nobody asks for the others' spelling
    Tokenizer(WordLevel(words, unk_token="<unknown>")).save(str(folder / "tokenizer.json"))


def _catalog(lab: Lab, vocab: int, items: int, codebook: int) -> Catalog:
    """Uniform SIDs; each level has a range of tokens of its own where the vocabulary has room."""
    draws = lab.random.integers(0, codebook, (items + items // 4, DEPTH))
    spread = np.arange(DEPTH) * codebook if DEPTH * codebook <= vocab else 0
    sids = np.unique(draws, axis=0)
    sids = sids[lab.random.permutation(len(sids))[:items]] + spread
    return build_from_arrays([str(i) for i in range(len(sids))], sids, vocab_size=vocab)
