"""Conditions over attributes: what reads and evaluates them fastest, in least memory.

Run `python tests/bench/where.py [--items N]`. Compares sqlglot's parser with numpy over columns
(what is served) with DuckDB over the same columns, where it is installed: as Arrow arrays in place,
and in a table of its own. Each rival has a process of its own. Processor time, medians; DuckDB on
one thread, like a worker. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RIVALS = ("numpy", "duckdb in place", "duckdb table")
CONDITIONS = {
    "selective": "in_stock AND category IN ('c001', 'c005') AND price < 50 "
    "AND released >= TIMESTAMP '2022-01-01'",
    "half": "in_stock AND (price < 80 OR price IS NULL)",
    "text": "category LIKE '%7' AND NOT (price * 2 > stock)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rival", choices=RIVALS, help="measure this one, in this process")
    options = parser.parse_args()
    if options.rival:
        print(json.dumps(measure(options.rival, options.items)))
        return
    found: dict[str, dict[str, float]] = {}
    for rival in RIVALS:
        if rival != "numpy" and importlib.util.find_spec("duckdb") is None:
            print(f"{rival}: not installed")
            continue
        command = [sys.executable, __file__, "--items", str(options.items), "--rival", rival]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[rival] = json.loads(out.splitlines()[-1])
    print(" " * 24 + "".join(f"{rival:>18}" for rival in found))
    for name in found["numpy"]:
        row = "".join(f"{found[rival].get(name, np.nan):18.3f}" for rival in found)
        print(f"{name:24}{row}")
    print(json.dumps({"benchmark": "where", "items": options.items, "cores": os.cpu_count(), **found}))


def measure(rival: str, items: int) -> dict[str, float]:
    """Milliseconds of the processor and megabytes, by what they are of."""
    arrays = made(items)
    before = megabytes()
    start = time.process_time()
    rows_of, check = {"numpy": with_numpy, "duckdb in place": in_place, "duckdb table": in_table}[rival](
        arrays
    )
    results = {"import_and_load_ms": (time.process_time() - start) * 1e3}
    results["check_ms"] = median(lambda: check(CONDITIONS["selective"]), 20)
    for name, sql in CONDITIONS.items():
        results[f"{name}_ms"] = median(lambda sql=sql: rows_of(sql), 5)
        results[f"{name}_rows"] = float(rows_of(sql))
    if rival == "numpy":
        results |= with_a_cache(arrays)
    results["memory_mb"] = megabytes() - before
    return results


def made(items: int) -> dict[str, Any]:
    """Columns of one seed: NULL prices, categories as codes of 200 texts."""
    rng = np.random.default_rng(0)
    return {
        "price": rng.random(items) * 100,
        "priced": rng.random(items) < 0.95,
        "in_stock": rng.random(items) < 0.7,
        "category": rng.integers(0, 200, items).astype(np.int32),
        "texts": [f"c{number:03d}" for number in range(200)],
        "stock": rng.integers(0, 200, items),
        "item_lo": np.arange(items + 1, dtype=np.int32),
        "released": rng.integers(1_600_000_000_000_000, 1_900_000_000_000_000, items),
    }


def with_numpy(arrays: dict[str, Any]) -> tuple[Callable[[str], int], Callable[[str], None]]:
    from xgr_runtime.catalog.places import LeafPlaces
    from xgr_runtime.catalog.where import ItemRows, check_where, live_rows

    columns = columns_of(arrays)
    places = LeafPlaces(arrays["item_lo"], arrays["item_lo"][:-1])
    return (
        lambda sql: live_rows(sql, ItemRows.built(columns, places)).leaves.live(places.leaves),
        lambda sql: check_where(sql, columns),
    )


def columns_of(arrays: dict[str, Any]) -> dict[str, Any]:
    """As a built catalog holds them."""
    from xgr_runtime.catalog.attributes import AttributeColumn
    from xgr_runtime.catalog.items import pack_strings

    none = AttributeColumn.without("")
    valid = np.packbits(arrays["priced"], bitorder="little")
    texts = pack_strings([text.encode() for text in arrays["texts"]])
    return {
        "price": none._replace(name="price", kind="float", values=arrays["price"], valid=valid),
        "in_stock": none._replace(name="in_stock", kind="bool", values=arrays["in_stock"].view(np.uint8)),
        "category": none._replace(name="category", kind="string", values=arrays["category"], texts=texts),
        "stock": none._replace(name="stock", kind="int", values=arrays["stock"]),
        "released": none._replace(name="released", kind="time", values=arrays["released"]),
    }


def with_a_cache(arrays: dict[str, Any]) -> dict[str, float]:
    """What a condition that is kept costs a request, alone and with 200 denied items; its memory."""
    from xgr_kernels.trie import leaf_filter
    from xgr_runtime.catalog.places import LeafPlaces
    from xgr_runtime.catalog.where import ItemRows, KeptFilters

    leaves = len(arrays["price"])
    item_lo = arrays["item_lo"]
    items = ItemRows.built(columns_of(arrays), LeafPlaces(item_lo, item_lo[:-1]))
    kept = KeptFilters(items, 1 << 30)
    sql = CONDITIONS["half"]
    bytes_ = kept.left_by(sql).nbytes
    denied = np.random.default_rng(1).choice(leaves, 200, replace=False).astype(np.int32)
    times = {
        "again_ms": lambda: leaf_filter(leaves, None, (), kept.left_by(sql).leaves),
        "again_deny_200_ms": lambda: leaf_filter(leaves, None, denied, kept.left_by(sql).leaves),
    }
    return {name: median(run, 200) for name, run in times.items()} | {"kept_mb": bytes_ / 1e6}


def in_place(arrays: dict[str, Any]) -> tuple[Callable[[str], int], Callable[[str], None]]:
    return with_duckdb(arrays, copied=False)


def in_table(arrays: dict[str, Any]) -> tuple[Callable[[str], int], Callable[[str], None]]:
    return with_duckdb(arrays, copied=True)


def with_duckdb(arrays: dict[str, Any], copied: bool) -> tuple[Callable[[str], int], Callable[[str], None]]:
    import duckdb
    import pyarrow as pa

    rows = len(arrays["price"])

    def flat(kind: pa.DataType, values: NDArray[Any], valid: NDArray[Any] | None = None) -> pa.Array:
        return pa.Array.from_buffers(
            kind, rows, [None if valid is None else pa.py_buffer(valid), pa.py_buffer(values)]
        )

    table = pa.table(
        {
            "price": flat(pa.float64(), arrays["price"], np.packbits(arrays["priced"], bitorder="little")),
            "in_stock": flat(pa.bool_(), np.packbits(arrays["in_stock"], bitorder="little")),
            "category": pa.DictionaryArray.from_arrays(
                flat(pa.int32(), arrays["category"]), pa.array(arrays["texts"])
            ),
            "stock": flat(pa.int64(), arrays["stock"]),
            "released": flat(pa.timestamp("us"), arrays["released"]),
            "row": flat(pa.int32(), arrays["item_lo"]),
        }
    )
    connection = duckdb.connect(config={"threads": 1})
    connection.register("items", table)
    name = "items"
    if copied:
        connection.execute("create table own as select * from items")
        name = "own"

    def rows_of(sql: str) -> int:
        found = connection.execute(f"select row from {name} where {sql}").fetchnumpy()["row"]
        bits = np.zeros(rows, np.bool_)
        bits[np.asarray(found)] = True
        np.packbits(bits, bitorder="little")
        return len(found)

    return rows_of, lambda sql: connection.execute(f"explain select row from {name} where {sql}").fetchall()


def median(run: Callable[[], object], times: int) -> float:
    """Milliseconds of the processor; the first run, which makes caches, does not count."""
    run()
    taken = []
    for _ in range(times):
        start = time.process_time_ns()
        run()
        taken.append((time.process_time_ns() - start) / 1e6)
    return statistics.median(taken)


def megabytes() -> float:
    """The most that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
