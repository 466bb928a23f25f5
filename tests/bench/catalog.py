"""Catalog benchmark: build, open, verify and filters at one million items, and trie bytes at twenty million.

Run `python tests/bench/catalog.py [--items N]`. Prints a table, and one JSON line last. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from made_catalogs import build_from_arrays

from xgr_kernels.trie import leaf_filter
from xgr_runtime.catalog import Catalog, build_catalog, resolve_items, verify
from xgr_runtime.catalog.order import sid_order
from xgr_runtime.catalog.trie import csr_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TARGETS = {
    "build_jsonl_s": 20.0,
    "build_arrays_s": 20.0,
    "open_s": 0.2,
    "deny_10k_leaves_ms": 2.0,
    "deny_10k_items_ms": 10.0,
    "trie_20m_mb": 240.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--skip-20m", action="store_true", help="leave out the 20M trie (needs about 2 GB)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.items, Path(folder))
    if not options.skip_20m:
        results["trie_20m_mb"] = trie_megabytes(20_000_000)
    for name, value in results.items():
        target = f"target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:24} {value:12.3f}  {target}")
    print(json.dumps({"benchmark": "catalog", "items": options.items, **results}))


def measure(items: int, folder: Path) -> dict[str, float]:
    rng = np.random.default_rng(0)
    sids = skewed_sids(rng, items, depth=3, codes=8192)
    ids = [f"B{number:09d}" for number in rng.permutation(items).tolist()]
    popularity = rng.zipf(1.5, items).astype(float).tolist()
    source, built = folder / "catalog.jsonl", folder / "catalog.xgr"
    write_jsonl(source, ids, sids, popularity)

    results: dict[str, float] = {}
    start = time.perf_counter()
    build_catalog(source)
    results["build_jsonl_s"] = time.perf_counter() - start
    start = time.perf_counter()
    catalog = build_from_arrays(ids, sids, popularity=popularity)
    results["build_arrays_s"] = time.perf_counter() - start
    start = time.perf_counter()
    catalog.save(built)
    results["save_s"] = time.perf_counter() - start
    results["file_mb"] = built.stat().st_size / 1e6
    results["open_s"] = median(lambda: Catalog.open(built), 5)
    opened = Catalog.open(built)
    results["verify_s"] = median(lambda: verify(opened), 1)
    results |= measure_filters(opened, ids, rng)
    return results


def measure_filters(catalog: Catalog, ids: list[str], rng: np.random.Generator) -> dict[str, float]:
    """A deny list of 10,000, ready for decode: from leaf numbers, and from item ids to the router's spec."""
    count = min(10_000, len(ids))
    chosen = [ids[row] for row in rng.choice(len(ids), count, replace=False)]
    items = json.loads(json.dumps(chosen))  # fresh strings side by side, as a request's parser leaves them
    leaves = catalog.leaves_of_items(items)

    def from_items() -> None:
        spec = resolve_items(catalog, None, items)
        leaf_filter(catalog.leaves, spec.allow_leaves, spec.deny_leaves)

    calls: dict[str, Callable[[], object]] = {
        "deny_10k_leaves": lambda: leaf_filter(catalog.leaves, None, leaves),
        "deny_10k_items": from_items,
        "allow_10k_items": lambda: resolve_items(catalog, items),
        "deny_64_items": lambda: resolve_items(catalog, None, items[:64]),
    }
    results: dict[str, float] = {}
    for name, call in calls.items():
        times = repeated(call, 41)
        results[f"{name}_ms"] = 1e3 * statistics.median(times)
        results[f"{name}_best_ms"] = 1e3 * min(times)  # of a machine that has other work, the fairer figure
    return results


def median(call: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    return statistics.median(repeated(call, repeats))


def repeated(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call, after one warm-up where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[-repeats:]


def skewed_sids(rng: np.random.Generator, items: int, depth: int, codes: int) -> NDArray[np.int32]:
    """[items, depth]; square-law popular codes, one range of the vocabulary per level."""
    codes_of = (rng.random((items, depth), dtype=np.float32) ** 2 * codes).astype(np.int32)
    return codes_of + np.arange(depth, dtype=np.int32) * codes


def write_jsonl(path: Path, ids: list[str], sids: NDArray[np.int32], popularity: list[float]) -> None:
    rows = zip(ids, sids.tolist(), popularity, strict=True)
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as stream:
        stream.writelines(
            encode({"item": item, "sid": sid, "popularity": score}) + b"\n" for item, sid, score in rows
        )


def trie_megabytes(leaves: int) -> float:
    """CSR bytes of a trie that hardly shares prefixes: uniform codes, 8,192 per level, depth 3."""
    rng = np.random.default_rng(1)
    sids = rng.integers(0, 8192, (leaves, 3), dtype=np.int32)
    sids = np.ascontiguousarray(sids[sid_order(sids)])
    tokens, lo = csr_levels(sids)
    return sum(array.nbytes for array in (*tokens, *lo)) / 1e6


if __name__ == "__main__":
    main()
