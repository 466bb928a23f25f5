"""Catalogs of a few items, the same at every call."""

from __future__ import annotations

import numpy as np
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import Catalog, PromptTemplate


def example(depth: int = 3, items: int = 200, titles: bool = True) -> Catalog:
    rng = np.random.default_rng(depth)
    return build_from_arrays(
        [f"item-{row}" for row in range(items)],
        rng.integers(0, 6, (items, depth)),
        titles=[f"T{row}é" if row % 3 else None for row in range(items)] if titles else None,
        attributes=[{"stock": row} for row in range(items)] if titles else None,
        template=PromptTemplate((1, 2), (3,), (4,), 9),
        vocab_size=50,
    )
