"""Checkpoint, catalog and histories of the tests: real where XGR_TEST_DATA names a data folder."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from xgr_runtime.cli.demo.data import ShopSettings
from xgr_runtime.cli.demo.prepare import DemoSettings, TrainingPlan, prepare

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "tests"

# Seconds of training are enough: tests compare two ways to the same answer and need no good model. A codebook
# of 64 keeps the vocabulary small; the budget of time is out of reach, so that every machine takes all steps.
GENERATED = DemoSettings(
    ShopSettings(items=500, users=300, codebook=64),
    TrainingPlan(seconds=600.0, least_steps=40, most_steps=40, hidden=64),
)


@dataclass(frozen=True)
class TestData:
    """Where the instruments lie, or what stands in for them."""

    __test__ = False

    model: Path
    catalog: Path
    histories: Path


def real_data() -> TestData | None:
    """The data folder's instruments set, if XGR_TEST_DATA names a data folder."""
    root = os.environ.get("XGR_TEST_DATA")
    if not root:
        return None
    base, model = Path(root) / "data" / "instruments", Path(root) / "models" / "instruments"
    return TestData(model.resolve(), (base / "index.json").resolve(), (base / "histories.jsonl").resolve())


def find_data() -> TestData:
    """The real files, or the generated ones (made once, then kept in .cache/tests)."""
    if found := real_data():
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # of the processes of one run, one makes them
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = prepare(GENERATED, CACHE, report=lambda _: None)
    return TestData(made.model, made.catalog, made.histories)
