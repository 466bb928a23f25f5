"""Versions of a catalog that come while cohorts run: the same answers, and what a swap costs."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import numpy as np
import pytest
from engines import Engines, finish
from lab import Lab
from models import make_to_measure
from results import Figures

from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.search import Search
from xgr_runtime.catalog import Catalog, CatalogView
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited

pytestmark = pytest.mark.times
SWAPS, ROUNDS = 8, 15


@pytest.mark.cases(
    "model, W, L, B",
    full=[pytest.param("1.7B", 256, 2048, 4, id="1.7B-W256-L2048-B4")],
    toy=[pytest.param("toy", 2, 20, 1, id="toy-W2-L20-B1")],
)
def test_swaps(lab: Lab, figures: Figures, model: str, W: int, L: int, B: int) -> None:
    """Each version has a SID more, and an item hidden, and comes while a cohort reads the one before."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, B * L + 64)
    engine = engines.decode(W * B if lab.toy else 1024, W)
    parts = [engines.part(engines.prompt(L)) for _ in range(B)]
    hidden = lab.random.standard_normal((B, engines.model.identity.hidden)).astype(np.float32)

    def searches(view: CatalogView) -> list[Search]:
        return [engines.search(part, x, W, W, view=view) for part, x in zip(parts, hidden, strict=True)]

    versions = _versions(made.catalog, lab.random, lab.rounds(SWAPS))
    undisturbed = [_seconds(engine, searches(versions[0])) for _ in range(lab.rounds(ROUNDS))]
    came, disturbed = [], []
    for before, after in pairwise(versions):
        flying, started = searches(before), time.perf_counter()
        engine.launch(flying)
        while not engine.place(after, [after.visible] if after.visible else []):
            pass
        came.append(time.perf_counter() - started)
        behind = searches(after)
        while not engine.ready:
            engine.collect()
        engine.launch(behind)
        while any(not search.over for search in flying):
            engine.collect()
        disturbed.append(time.perf_counter() - started)
        while engine.busy:
            engine.collect()
        again = finish(engine, [*searches(before)]), finish(engine, [*searches(after)])
        assert _found(flying) == _found(again[0]) and _found(behind) == _found(again[1])
        engine.keep([after])
    figures.time("a version on its way to the device, cohorts running", statistics.median(came))
    ratio = statistics.median(disturbed) / statistics.median(undisturbed)
    figures.time("a cohort while a version comes", statistics.median(disturbed), over_undisturbed=ratio)
    if not lab.toy:
        figures.goal("a cohort while a version comes over an undisturbed one", ratio, 1.3)


def _versions(catalog: Catalog, random: np.random.Generator, swaps: int) -> list[CatalogView]:
    """One behind the other, each with a trie of its own."""
    views = [CatalogView(catalog)]
    tokens = [np.unique(level) for level in catalog.trie.tokens]
    for number in range(swaps):
        after, before = views[-1], views[-1]
        while after.catalog.leaves == before.catalog.leaves:
            sid = tuple(int(random.choice(level)) for level in tokens)
            hide = (catalog.item_id(number),)
            after = edited(before, EditBatch(put=(ItemRecord(f"of swap {number}", sid),), hide=hide))
        views.append(after)
    return views


def _seconds(engine: CohortEngine, searches: list[Search]) -> float:
    started = time.perf_counter()
    assert len(finish(engine, searches)) == len(searches)
    return time.perf_counter() - started


def _found(searches: list[Search]) -> list[tuple[list[int], list[float], float]]:
    assert not any(search.invalid for search in searches)
    return [(search.lo.tolist(), search.scores.tolist(), search.ceiling) for search in searches]
