"""What beam selection costs beside a catalog's size: it must grow with what lives, not with the catalog.

Run `python tests/bench/select_scale.py [--items N ...] [--width W]`. Catalogs have one seed, three levels of
8,192 codes, uniform and Zipf. For each a search of width W runs over random logits, with all leaves alive and
with filters that leave half of them and one percent, in both score modes. Processor time of one thread,
medians in milliseconds: the whole search, and its second level, where most children are. Prints a table, and
one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from xgr_kernels.beam_select import BeamBatch, beam_select, warm_up
from xgr_kernels.trie import Trie, filter_of_bits, no_filter
from xgr_runtime.catalog.order import sid_order
from xgr_runtime.catalog.trie import csr_levels, first_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_kernels.trie import LeafFilter, Normaliser

CODES, DEPTH = 8192, 3
SEED = 20
MOST_RATIO = 1.5  # of the largest catalog's search to that of a million


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["uniform", "zipf"], choices=["uniform", "zipf"])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    warm_up()
    rng = np.random.default_rng(SEED)
    logits = [
        torch.from_numpy(rng.standard_normal((rows, CODES * DEPTH), np.float32) * np.float32(3))
        for rows in (1, options.width, options.width)
    ]
    cases = []
    heads = {"items": 10, "kind": 8, "leaves": 10, "alive": 6, "mode": 6, "search_ms": 10, "level_1_ms": 10}
    print(" ".join(f"{name:>{wide}}" for name, wide in heads.items()))
    for kind in options.kinds:
        for items in options.items:
            trie = made_trie(np.random.default_rng(SEED), items, kind)
            for alive, leaves in filters(trie).items():
                for mode in ("vocab", "legal"):
                    found = measure(trie, leaves, mode, logits, options.width, options.rounds)
                    about = {
                        "items": items,
                        "kind": kind,
                        "leaves": trie.leaves,
                        "alive": alive,
                        "mode": mode,
                    }
                    cases.append({**about, **found})
                    cells = (f"{cases[-1][name]:>{wide}}" for name, wide in heads.items())
                    print(" ".join(cells), flush=True)
    print(json.dumps({"benchmark": "select_scale", "width": options.width, "cases": cases, **ratios(cases)}))


def made_trie(rng: np.random.Generator, items: int, kind: str) -> Trie:
    """Of that many items; several may share a SID."""
    sids = np.empty((items, DEPTH), np.int32)
    for level in range(DEPTH):
        if kind == "uniform":
            sids[:, level] = rng.integers(0, CODES, items, np.int32)
        else:
            weights = 1 / np.arange(1, CODES + 1)
            sids[:, level] = np.searchsorted(
                np.cumsum(weights) / weights.sum(), rng.random(items), side="right"
            )
        np.minimum(sids[:, level], CODES - 1, out=sids[:, level])
        sids[:, level] += level * CODES
    sids = sids[sid_order(sids)]
    sids = sids[first_difference(sids) < DEPTH]
    tokens, lo = csr_levels(sids)
    return Trie(len(sids), tuple(tokens), tuple(lo))


def filters(trie: Trie) -> dict[str, LeafFilter]:
    rng = np.random.default_rng(SEED + 1)
    made = {"all": no_filter()}
    for name, part in (("50%", 0.5), ("1%", 0.01)):
        bits = np.zeros(-(-trie.leaves // 64), np.uint64)
        flags = np.packbits(rng.random(trie.leaves, np.float32) < part, bitorder="little")
        bits.view(np.uint8)[: len(flags)] = flags
        made[name] = filter_of_bits(bits)
    return made


def measure(
    trie: Trie,
    leaves: LeafFilter,
    mode: Normaliser,
    logits: list[torch.Tensor],
    width: int,
    rounds: int,
) -> dict[str, Any]:
    times: list[list[float]] = []
    for _ in range(rounds + 1):
        scores: NDArray[np.float32] = np.zeros(1, np.float32)
        lo, hi = np.zeros(1, np.int32), np.full(1, trie.leaves, np.int32)
        levels: list[float] = []
        visited = 0
        for level in range(DEPTH):
            batch = BeamBatch([0, len(lo)], [level], [width], [trie], [leaves], [mode], scores, lo, hi)
            start = time.thread_time()
            found = beam_select(logits[level][: len(lo)], batch)
            levels.append((time.thread_time() - start) * 1e3)
            visited += int(found.elements_visited[0])
            scores, lo, hi = found.score, found.lo, found.hi
        times.append(levels)
    of_level = [statistics.median(levels) for levels in zip(*times[1:], strict=True)]
    return {
        "search_ms": round(statistics.median(map(sum, times[1:])), 2),
        **{f"level_{level}_ms": round(value, 2) for level, value in enumerate(of_level)},
        "visited": visited,
    }


def ratios(cases: list[dict[str, Any]]) -> dict[str, float]:
    """Of each case's search to that of a million items, or of the smallest catalog where there is none."""
    found: dict[str, float] = {}
    for case in cases:
        same = [one for one in cases if all(one[key] == case[key] for key in ("kind", "alive", "mode"))]
        base = next((one for one in same if one["items"] == 1_000_000), same[0])
        name = f"{case['items']} {case['kind']} {case['alive']} {case['mode']}"
        found[name] = round(case["search_ms"] / base["search_ms"], 2)
    return found


if __name__ == "__main__":
    main()
