"""Hugging Face `generate`, held to the catalog by `prefix_allowed_tokens_fn`, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speak import Beams, Prompts, talk, versions
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
from constrained_generate import Children, constrained_generate

from xgr_runtime.catalog import Catalog, load_catalog


@dataclass
class HuggingFace:
    model: Any
    children: Children
    depth: int

    def facts(self) -> dict[str, Any]:
        cannot = ["take requests as they come: a batch runs from its first step to its last"]
        return {"versions": versions("transformers", "torch"), "cannot": cannot}

    def ask(self, prompts: Prompts, width: int, at_a_time: int) -> list[Beams]:
        batches = [prompts[i : i + at_a_time] for i in range(0, len(prompts), at_a_time)]
        found = [constrained_generate(self.model, b, self.children, self.depth, width) for b in batches]
        return [[(list(sid), score) for sid, score in beams] for batch in found for beams in batch]


@contextmanager
def start(settings: dict[str, Any]) -> Iterator[HuggingFace]:
    torch.set_num_threads(settings["threads"])
    catalog = load_catalog(settings["catalog"], settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    yield HuggingFace(model, children_of(catalog), catalog.depth)


def children_of(catalog: Catalog) -> Children:
    """The tokens that may follow each prefix."""
    found: dict[tuple[int, ...], list[int]] = {}
    for level in range(catalog.depth):
        for *prefix, token in np.unique(catalog.sids[:, : level + 1], axis=0).tolist():
            found.setdefault(tuple(prefix), []).append(token)
    return found


if __name__ == "__main__":
    talk(start)
