"""How soon a change of the catalog is in use while requests come in, and what it costs them.

python tests/bench/catalog_updates.py --model-path DIR [--items N ...]

Generates catalogs of so many items in the tokens of the checkpoint's own SIDs (`--catalog` says which these
are), starts a prefill worker, two decode workers and a router with a store, and sends requests at a fixed
rate, first undisturbed, then with one kind of change after the other, a call every `--every` seconds. Prints
a table of the times from a call until all workers use what it led to, and of the requests beside it, and one
JSON line last. `--plot FILE` draws it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from cluster import Cluster
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import Catalog, load_catalog

KINDS = ("hide", "show", "remove", "rank", "add", "push", "rollback")


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model-path", type=Path, required=True)
    flags.add_argument(
        "--catalog", type=Path, required=True, help="of the checkpoint, for the tokens of levels"
    )
    flags.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000])
    flags.add_argument("--rate", type=float, default=5.0, help="requests per second")
    flags.add_argument("--every", type=float, default=0.25, help="seconds between two changes")
    flags.add_argument("--seconds", type=float, default=10.0, help="of each part")
    flags.add_argument("--beam-width", type=int, default=32)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--plot", type=Path, default=None, help="file of a picture, such as updates.png")
    args = flags.parse_args()
    example = load_catalog(args.catalog, args.model_path)
    results = {}
    for items in args.items:
        results[str(items)] = found = measure(args, generated(example, items, args.seed))
        show(items, found)
    if args.plot is not None:
        draw(results, args.plot)
    print(json.dumps({"benchmark": "catalog_updates", "rate": args.rate, "results": results}))
    return 0


def generated(example: Catalog, items: int, seed: int) -> Catalog:
    """Random SIDs of the example's tokens."""
    rng = np.random.default_rng(seed)
    sids = np.stack([rng.choice(tokens, items) for tokens in example.codebooks], axis=1).astype(np.int32)
    names = [f"item-{number}" for number in range(items)]
    return build_from_arrays(names, sids, template=example.template, vocab_size=example.vocab_size)


def measure(args: argparse.Namespace, catalog: Catalog) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "catalog.xgr"
        catalog.save(file)
        store = Path(folder) / "store"
        settings = {"catalog_store": str(store), "heartbeat": 0.5, "log_level": "WARNING"}
        with Cluster(args.model_path, file, prefill=1, decode=2, **settings) as cluster:
            changes = Changes(cluster.url, catalog, store, args.seed)
            load(args, cluster.url, catalog, 3.0, None)  # warm
            found = {"none": load(args, cluster.url, catalog, args.seconds, None)}
            for kind in KINDS:
                found[kind] = load(args, cluster.url, catalog, args.seconds, lambda k=kind: changes.make(k))
            return found


class Changes:
    """Calls that change the catalog, one kind at a time."""

    def __init__(self, url: str, catalog: Catalog, store: Path, seed: int) -> None:
        self.client = httpx.Client(base_url=url, timeout=120.0)
        self.catalog = catalog
        self.draw = random.Random(seed)
        self.hidden: list[str] = []
        self.number = 0
        half = catalog.items // 2
        sids = catalog.sids[catalog.leaf_of_row[:half]]
        names = [catalog.item_id(row) for row in range(half)]
        self.other = "other.xgr"
        build_from_arrays(names, sids, template=catalog.template, vocab_size=catalog.vocab_size).save(
            store / self.other
        )

    def make(self, kind: str) -> float:
        """The milliseconds until the change was in use, as the answer says."""
        self.number += 1
        if kind == "push":
            response = self.client.put("/catalog", json={"path": self.other})
        elif kind == "rollback":
            response = self.client.post("/catalog/rollback", json={})
        else:
            response = self.client.post("/catalog/items", json=self.batch(kind))
        assert response.status_code == 200, response.text
        return float(response.json()["visible_ms"])

    def batch(self, kind: str) -> dict[str, Any]:
        name = f"item-{self.draw.randrange(self.catalog.items)}"
        if kind == "hide":
            self.hidden.append(name)
        elif kind == "show" and self.hidden:
            name = self.hidden.pop()
        if kind == "rank":
            return {"rank": {name: self.draw.random()}}
        if kind == "add":
            sid = [self.draw.choice(tokens.tolist()) for tokens in self.catalog.codebooks]
            return {"add": [{"item": f"new-{self.number}", "sid": sid}]}
        return {kind: [name]}


def load(
    args: argparse.Namespace,
    url: str,
    catalog: Catalog,
    seconds: float,
    change: Callable[[], float] | None,
) -> dict[str, Any]:
    """Requests at the rate for so long, and changes beside them."""
    end, draw = time.monotonic() + seconds, random.Random(args.seed)
    latencies: list[float] = []
    failed: list[str] = []
    visible: list[float] = []

    def ask(history: list[str]) -> None:
        began = time.monotonic()
        body = {"history": history, "sampling_params": {"beam_width": args.beam_width}}
        response = client.post("/generate", json=body | {"unknown_history": "drop"})
        latencies.append(1000 * (time.monotonic() - began))
        if response.status_code != 200:
            failed.append(response.text)

    def ask_on() -> None:
        due, threads = time.monotonic(), []
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            history = [f"item-{draw.randrange(catalog.items // 2)}" for _ in range(10)]
            threads.append(threading.Thread(target=ask, args=(history,)))
            threads[-1].start()
            due += draw.expovariate(args.rate)
        for thread in threads:
            thread.join()

    with httpx.Client(base_url=url, timeout=60.0) as client:
        asking = threading.Thread(target=ask_on)
        asking.start()
        while change is not None and time.monotonic() < end:
            began = time.monotonic()
            visible.append(change())
            time.sleep(max(0.0, args.every - (time.monotonic() - began)))
        asking.join()
    return {
        "requests": len(latencies),
        "failed": len(failed),
        "first_failure": failed[0][:300] if failed else "",
        "request_p50_ms": percentile(latencies, 50),
        "request_p99_ms": percentile(latencies, 99),
        "changes": len(visible),
        "visible_p50_ms": percentile(visible, 50),
        "visible_p99_ms": percentile(visible, 99),
    }


def percentile(values: list[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 2) if values else None


def show(items: int, found: dict[str, Any]) -> None:
    print(f"\n{items:,} items: milliseconds from call to visible, and of requests beside")
    print(f"{'change':10}{'changes':>9}{'p50':>9}{'p99':>9}{'requests':>10}{'p50':>9}{'p99':>9}{'failed':>8}")
    for kind, row in found.items():
        shown = [row[name] for name in ("changes", "visible_p50_ms", "visible_p99_ms", "requests")]
        shown += [row[name] for name in ("request_p50_ms", "request_p99_ms", "failed")]
        widths = (9, 9, 9, 10, 9, 9, 8)
        cells = ["" if value is None else str(value) for value in shown]
        print(f"{kind:10}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


def draw(results: dict[str, Any], path: Path) -> None:
    """Median and p99 by kind, for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    for at, (items, found) in enumerate(results.items()):
        places = np.arange(len(KINDS)) + 0.4 * at
        p99 = [found[kind]["visible_p99_ms"] or 0 for kind in KINDS]
        p50 = [found[kind]["visible_p50_ms"] or 0 for kind in KINDS]
        axes.bar(places, p99, 0.35, alpha=0.4, color=f"C{at}", label=f"{int(items):,} items, p99")
        axes.bar(places, p50, 0.35, color=f"C{at}", label=f"{int(items):,} items, median")
    axes.set_xticks(np.arange(len(KINDS)) + 0.2, KINDS)
    axes.set_yscale("log")
    axes.set_ylabel("ms from call to visible")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
