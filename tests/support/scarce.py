"""Settings for deployments in which memory is short."""

from __future__ import annotations

import json
from pathlib import Path

LONGEST = 257  # tokens: 64 items of four tokens and the begin token


def token_bytes(checkpoint: Path) -> int:
    """Keys and values of one token in float32."""
    config = json.loads((checkpoint / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * 4 * int(config["num_hidden_layers"] * config["num_key_value_heads"] * head)
