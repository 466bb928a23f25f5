"""All cells of a run, in order, with their estimated seconds; also at toy sizes, to try the script."""

from __future__ import annotations

from itertools import product
from typing import Any

from plan import Cell

BOTH = ("fa2", "fa3")
PROMPTS = {"packed-8x1k": [1024] * 8, "packed-2x4k": [4096] * 2, "one-1k": [1024]}


def all_cells(toy: bool = False) -> list[Cell]:
    """Checks first, then kernels, then engines and whole requests."""
    return [*_checks(), *_attention(toy), *_selection(toy)]


def _checks() -> list[Cell]:
    return [
        Cell("check-shared-attention", "attention_checks:paged", 45, BOTH, {"causal": False}),
        Cell("check-causal-attention", "attention_checks:paged", 60, BOTH, {"causal": True}),
        Cell("check-tail-attention", "attention_checks:tail", 25, ("triton",)),
        Cell("check-selection", "selection_checks:against_reference", 60, ("triton",)),
        Cell("check-selection-bad-logits", "selection_checks:bad_logits", 5, ("triton",)),
        Cell("check-selection-same-bits", "selection_checks:same_bits", 5, ("triton",)),
    ]


def _attention(toy: bool) -> list[Cell]:
    needs = (*BOTH, "decode", "triton")
    heads = [(16, 8)] if toy else [(16, 8), (32, 8)]
    grid = [(5, 40, 2)] if toy else list(product((128, 256, 512), (1024, 2048, 4096), (1, 4, 16)))
    cells = [
        Cell(
            f"shared-{q}/{kv}-W{W}-L{L}-B{B}",
            "attention_cells:shared",
            4 + B * W * L / 8e6,  # the naive way's time, 40 times over
            needs,
            {"q_heads": q, "kv_heads": kv, "W": W, "L": L, "B": B},
        )
        for (q, kv), (W, L, B) in product(heads, grid)
    ]
    prompts = {"packed-2x20": [20, 20]} if toy else PROMPTS
    batches = {name: (lengths, lengths) for name, lengths in prompts.items()}
    if not toy:
        batches["chunk-1k-behind-4k"] = ([1024], [5120])
    return cells + [
        Cell(
            f"prefill-attention-{q}/{kv}-{name}",
            "attention_cells:causal",
            4,
            BOTH,
            {"q_heads": q, "kv_heads": kv, "counts": counts, "lengths": lengths},
        )
        for (q, kv), (name, (counts, lengths)) in product(heads, batches.items())
    ]


def _selection(toy: bool) -> list[Cell]:
    more: dict[str, Any] = {"W": 8, "B": 2, "codebook": 64} if toy else {}
    grid = product(
        (64,) if toy else (8192, 151936),
        (200,) if toy else (100_000, 1_000_000),
        (True,) if toy else (False, True),
        range(3),
    )
    return [
        Cell(
            f"select-V{vocab}-{items // 1000}k-{'zipf' if skewed else 'uniform'}-level{level}",
            "selection_cells:select",
            8 if vocab > 8192 else 5,
            ("triton",),
            {"vocab": vocab, "items": items, "skewed": skewed, "level": level, **more},
        )
        for vocab, items, skewed, level in grid
    ]
