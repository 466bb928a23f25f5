"""What the benchmarks that send requests share: the prompts, and a clock."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xgr_runtime.catalog import Catalog

SEED = 7


def make_prompts(catalog: Catalog, count: int, tokens: int) -> list[list[int]]:
    """Random items behind the catalog's prefix, cut to exactly `tokens`."""
    random = np.random.default_rng(SEED)
    leaves = random.integers(0, catalog.leaves, (count, tokens // catalog.depth + 1))
    prefix = list(catalog.template.prefix)
    return [(prefix + catalog.sids[row].flatten().tolist())[:tokens] for row in leaves]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result
