"""All cells of a run, in order, with their estimated seconds; also at toy sizes, to try the script."""

from __future__ import annotations

from itertools import product
from typing import Any

from plan import MORE, Cell

BOTH = ("fa2", "fa3")
PROMPTS = {"packed-8x1k": [1024] * 8, "packed-2x4k": [4096] * 2, "one-1k": [1024]}


def all_cells(toy: bool = False) -> list[Cell]:
    """Checks first, then kernels, then engines and whole requests."""
    usual = [*_checks(toy), *_attention(toy), *_end_to_end(toy), *_engines(toy), *_served(toy)]
    return usual if toy else [*usual, *_more_checks()]


def _checks(toy: bool) -> list[Cell]:
    heads = [(16, 8, 128)] if toy else [(16, 8, 128), (32, 8, 128), (12, 2, 128)]
    usual: dict[str, Any] = {"heads": heads, "dtype": "bfloat16"}
    return [
        Cell("check-tail-attention", "attention_checks:tail", 25, ("triton",)),
        Cell("check-selection", "selection_checks:against_reference", 120, ("triton",)),
        Cell("check-shared-kv", "memory_checks:shared_kv", 25),
        Cell("check-dead-owner", "memory_checks:dead_owner", 30),
        Cell("check-shared-weights", "memory_checks:shared_weights", 20),
        Cell("check-selection-bad-logits", "selection_checks:bad_logits", 5, ("triton",)),
        Cell("check-selection-same-bits", "selection_checks:same_bits", 5, ("triton",)),
        *_selection(toy),
        Cell("check-shared-attention", "attention_checks:paged", 25, BOTH, {"causal": False, **usual}),
        Cell("check-causal-attention", "attention_checks:paged", 30, BOTH, {"causal": True, **usual}),
        Cell("check-shared-replays", "replay_checks:attention", 10, BOTH, {"causal": False}),
        Cell("check-causal-replays", "replay_checks:attention", 10, BOTH, {"causal": True}),
    ]


def _more_checks() -> list[Cell]:
    """Attention in other dtypes and head dims, each compiled anew by the library: last, and apart."""
    return [
        Cell(
            f"other-{'causal' if causal else 'shared'}-attention-{dim}-{dtype}",
            "attention_checks:paged",
            20,
            (f"fa2 {dim} {dtype}", f"fa3 {dim} {dtype}"),
            {"causal": causal, "heads": [(12, 2, dim)], "dtype": dtype},
        )
        for (dim, dtype), causal in product(MORE, (False, True))
    ]


def _attention(toy: bool) -> list[Cell]:
    needs = (*BOTH, "rivals", "triton")
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
            (8 if vocab > 8192 else 5) + (4 if items > 100_000 else 0),
            ("triton",),
            {"vocab": vocab, "items": items, "skewed": skewed, "level": level, **more},
        )
        for vocab, items, skewed, level in grid
    ]


KERNELS = (*BOTH, "triton")
CATALOG = {"items": 100_000, "codebook": 8192}
TOY = {"items": 60, "codebook": 24}


def _end_to_end(toy: bool) -> list[Cell]:
    layouts = ("colocated",) if toy else ("colocated", "split", "split-frames")
    return [
        Cell("end-to-end-engines", "end_to_end:engines", 40, KERNELS),
        *(
            Cell(f"end-to-end-{layout}", "served_cells:correct", 70, KERNELS, {"layout": layout})
            for layout in layouts
        ),
    ]


def _engines(toy: bool) -> list[Cell]:
    if toy:
        sizes: dict[str, Any] = {"model": "toy", **TOY}
        beams = {"W": 3, "L": 20, "B": 2}
        return [
            Cell("decode-toy", "engine_cells:decode_cohort", 20, KERNELS, sizes | beams),
            Cell("prefill-toy", "engine_cells:prefill_batch", 5, KERNELS, sizes | {"counts": [20, 7]}),
            Cell("in-turns-toy", "engine_cells:in_turns", 20, KERNELS, sizes | beams),
        ]
    cells = []
    for model in ("0.6B", "1.7B", "4B"):
        needs = (*KERNELS, model)
        for W, L, B in [(256, 2048, 4), (256, 5000, 1), *([(512, 2048, 2)] if model == "1.7B" else [])]:
            name = f"decode-{model}-W{W}-L{L}-B{B}"
            sizes = {"model": model, "W": W, "L": L, "B": B, **CATALOG}
            cells.append(Cell(name, "engine_cells:decode_cohort", 35, needs, sizes))
        for name, counts in PROMPTS.items():
            sizes = {"model": model, "counts": counts, **CATALOG}
            cells.append(Cell(f"prefill-{model}-{name}", "engine_cells:prefill_batch", 20, needs, sizes))
        sizes = {"model": model, "W": 256, "L": 5000, "B": 4, **CATALOG}
        cells.append(Cell(f"in-turns-{model}-W256-L5000", "engine_cells:in_turns", 40, needs, sizes))
    return cells


def _served(toy: bool) -> list[Cell]:
    if toy:
        sizes: dict[str, Any] = {"model": "toy", "L": 20, "widths": [5], "callers": [2], **TOY}
        return [_load("served-toy-colocated", sizes | {"layout": "colocated", "seconds": 2.0})]
    cells = []
    for model in ("0.6B", "1.7B", "4B"):
        common = {"model": model, "seconds": 10.0, **CATALOG}
        nvidia = common | {"L": 5000, "widths": [256], "callers": [4, 8], "goal": model == "1.7B"}
        layouts = ["colocated"]
        if model == "1.7B":
            layouts += ["colocated-no-turns", "split", "split-frames"]
        cells += [
            _load(f"served-{model}-W256-L5000-{layout}", nvidia | {"layout": layout}) for layout in layouts
        ]
        if model == "1.7B":
            flashrec = common | {"L": 2465, "widths": [50, 128, 512], "callers": [8]}
            cells.append(_load(f"served-{model}-L2465-colocated", flashrec | {"layout": "colocated"}))
    return cells


def _load(name: str, sizes: dict[str, Any]) -> Cell:
    """A start, and for each width some lone requests and a window of each number of callers."""
    model, windows = sizes["model"], len(sizes["widths"]) * len(sizes["callers"])
    start = 10 if model == "toy" else 60
    seconds = start + windows * (sizes["seconds"] + 5) + 5 * len(sizes["widths"])
    needs = KERNELS if model == "toy" else (*KERNELS, model)
    return Cell(name, "served_cells:load", seconds, needs, sizes)
