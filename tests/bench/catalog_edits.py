"""What a batch of edits costs: the pure function alone, and the first look at a condition after it.

Run `python tests/bench/catalog_edits.py [--items N ...] [--seed S]`. Catalogs are generated: three levels of
8,192 codes, uniform; an attribute in a column. Every batch is applied to the same version, `_again` to one
that has 1,000 edits. Prints a table for each size, and one JSON line last. Times are medians in milliseconds,
memory is what a version holds of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog import Catalog, CatalogView
from xgr_runtime.catalog.attributes import AttributeColumn
from xgr_runtime.catalog.content import Content
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.items import StringTable
from xgr_runtime.catalog.order import sid_order
from xgr_runtime.catalog.scoring import NEUTRAL
from xgr_runtime.catalog.template import PromptTemplate, Templates
from xgr_runtime.catalog.trie import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable

CODES = 8192
WHERE = "n < 5"
TARGETS = {1_000_000: {"hide": 3, "show": 3, "add_new": 100}, 20_000_000: {"add_new": 1500}}  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    results = {}
    for items in options.items:
        results[str(items)] = found = measure(items, options.seed, options.repeat)
        print(f"\n{items:,} items")
        for name, value in found.items():
            target = TARGETS.get(items, {}).get(name)
            print(f"{name:24} {value:12.3f}" + (f"  target {target}" if target else ""))
    print(json.dumps({"benchmark": "catalog_edits", **results}))


def generated(items: int, seed: int) -> Catalog:
    """Ids are the numbers of rows."""
    rng = np.random.default_rng(seed)
    sids = rng.integers(0, CODES, (items, 3), np.int32) + np.arange(3, dtype=np.int32) * CODES
    sids = sids[sid_order(sids)]
    starts = np.flatnonzero(first_difference(sids) < 3).astype(np.int32)
    digits = np.arange(items)[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")
    ids = StringTable(digits.astype(np.uint8).reshape(-1), np.arange(items + 1) * 8)
    numbers = rng.integers(0, 10, items)
    texts = np.tile(np.frombuffer(b'{"n":0}', np.uint8), (items, 1))
    texts[:, 5] += numbers.astype(np.uint8)
    attributes = StringTable(texts.reshape(-1), np.arange(items + 1) * 7)
    none = AttributeColumn.without("n")
    popularity = -np.arange(items, dtype=np.float64)
    content = Content(
        sids[starts],
        np.append(starts, np.int32(items)),
        ids,
        none.texts,
        attributes,
        Templates.of(PromptTemplate()),
        NEUTRAL,
        (none._replace(kind="int", values=numbers),),
        popularity,
    )
    return Catalog.from_content(content, 3 * CODES)


def batches(catalog: Catalog, rng: np.random.Generator) -> dict[str, EditBatch]:
    present = np.flatnonzero(catalog.present(np.arange(catalog.built_slots)))

    def names(count: int) -> tuple[str, ...]:
        return tuple(f"{row:08d}" for row in rng.choice(present, count, replace=False))

    def fresh() -> tuple[int, ...]:
        return tuple(int(rng.integers(CODES)) + level * CODES for level in range(3))

    def there() -> tuple[int, ...]:
        return tuple(catalog.sids[rng.integers(catalog.leaves)].tolist())

    def item(sid: tuple[int, ...], number: int = 0) -> ItemRecord:
        return ItemRecord(f"new {number} {rng.integers(1 << 30)}", sid, "", 0.5, b'{"n":1}')

    some = names(1000)
    mixed = EditBatch(
        put=tuple(item(fresh() if n % 2 else there(), n) for n in range(250)),
        remove=some[:250],
        hide=some[250:500],
        show=some[500:750],
        rank=tuple((name, 1.0) for name in some[750:]),
    )
    return {
        "hide": EditBatch(hide=names(1)),
        "show": EditBatch(show=names(1)),
        "remove": EditBatch(remove=names(1)),
        "rank": EditBatch(rank=((names(1)[0], 9.0),)),
        "add_old": EditBatch(put=(item(there()),)),
        "add_new": EditBatch(put=(item(fresh()),)),
        "mixed_1000": mixed,
    }


def measure(items: int, seed: int, repeat: int) -> dict[str, float]:
    rng = np.random.default_rng(seed + 1)
    results: dict[str, float] = {}
    view = CatalogView(generated(items, seed), 1 << 30)
    view.live(WHERE)
    for where, name in ((view, ""), (None, "_again")):
        if where is None:
            where = edited(view, batches(view.catalog, rng)["mixed_1000"])
            where.live(WHERE)
        for kind, batch in batches(where.catalog, rng).items():
            times, firsts, seconds = [], [], []
            for _ in range(repeat if kind != "mixed_1000" else 3):
                took, after = timed(lambda view=where, batch=batch: edited(view, batch))
                times.append(took)
                firsts.append(timed(lambda after=after: after.live(WHERE))[0])
                seconds.append(timed(lambda after=after: after.live(WHERE))[0])
            results[f"{kind}{name}"] = statistics.median(times)
            results[f"{kind}{name}_where_first"] = statistics.median(firsts)
            results[f"{kind}{name}_own_mb"] = own_bytes(where.catalog, after.catalog) / 1e6
        results[f"where_kept{name}"] = statistics.median(seconds)
    results["compact"], _ = timed(lambda: edited(where, EditBatch(compact=True)))
    return results


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what it gave."""
    start = time.perf_counter()
    found = run()
    return 1000 * (time.perf_counter() - start), found


def own_bytes(before: Catalog, after: Catalog) -> int:
    """Of arrays that the version before does not hold."""
    arrays = [
        after.arrays[name] for name in after.arrays if after.arrays[name] is not before.arrays.get(name)
    ]
    for one in (after, before):
        more = [one.places.order, one.later.present]
        if one.visible is not None:
            more += [one.visible.rows, one.visible.leaves.bits, one.visible.leaves.rank]
        if one is after:
            arrays += [array for array in more if array is not None]
        else:
            arrays = [array for array in arrays if not any(array is other for other in more)]
    return sum({id(array): array.nbytes for array in arrays}.values())


if __name__ == "__main__":
    main()
