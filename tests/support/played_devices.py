"""What a deployment of simulated devices serves: a checkpoint that costs nothing, with a real one's sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from checkpoints import build
from tokenizers import Tokenizer, models, pre_tokenizers

VOCAB, FIRST, CODES = 1024, 64, 256  # tokens of the checkpoint that is served, and of a level's codebook
ITEMS = 20_000
QWEN3_1_7B = {
    "layers": 28,
    "hidden": 2048,
    "intermediate": 6144,
    "q_heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
    "vocab": 151936,
}
"""The model that is played: sizes of Qwen3-1.7B. What is served has its own, which are tiny."""


class Files:
    """A checkpoint that costs nothing, what is played with it, and a catalog in its tokens."""

    def __init__(self, folder: Path, device: str, slower: float) -> None:
        self.model, self.catalog = folder / "model", folder / "index.json"
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
        build(
            "qwen3", 1, vocab_size=VOCAB, num_attention_heads=1, max_position_embeddings=8192, **sizes
        ).save_pretrained(self.model)
        spelt = Tokenizer(models.WordLevel({f"t{token}": token for token in range(VOCAB)}, unk_token="t0"))
        spelt.pre_tokenizer = pre_tokenizers.Whitespace()
        spelt.save(str(self.model / "tokenizer.json"))
        played = {"device": device, "model": QWEN3_1_7B, "slower": slower}
        (self.model / "simulation.json").write_text(json.dumps(played))
        codes = np.random.default_rng(0).choice(CODES**3, ITEMS, replace=False)
        levels = np.stack(np.unravel_index(codes, (CODES,) * 3), axis=1) + FIRST + CODES * np.arange(3)
        self.catalog.write_text(json.dumps({f"i{row}": sid for row, sid in enumerate(levels.tolist())}))
        (folder / "catalog.json").write_text(json.dumps({"sid_format": "token_ids"}))
