"""What tests share: checkpoint, catalog, histories and known answers, real or generated.

Real where XGR_TEST_DATA names a data folder.
"""

import importlib.util
import json
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import interpret_triton  # noqa: F401  before what imports transformers, and so Triton
import lanes
import pytest
import turns
from hypothesis import settings
from instruments import TestData, find_data, real_data
from items import Items, read_items
from oracle import Oracle
from references import SHARES, Reference, share_of, share_of_commit, stored_references
from shared_templates import close_all, deployment_of

from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

# Kernels compile once for the tests and for the processes that they start.
if (_cache := cache_folder()) is not None:
    os.environ["NUMBA_CACHE_DIR"] = str(KernelFolder(_cache).path)

# Where SGLang is not installed, its tests are left out; asked for by name, they say what they need.
# tests/gpu is a suite of its own.
SGLANG = importlib.util.find_spec("sglang") is not None
collect_ignore = ["gpu"] if SGLANG else ["gpu", "sglang"]

# How long an example takes says how busy the machine is, not what is wrong.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Of the files that run side by side, those that take longest: see `pytest_collection_modifyitems`.
LONGEST = (
    "handover/test_every_order.py",
    "http/test_costs.py",
    "kernels/test_attention.py",
    "kernels/test_beam_select.py",
    "bench/test_command.py",
    "model/test_stages.py",
    "process/test_child.py",
    "model/test_kept_checks.py",
    "model/test_cpu_backend.py",
    "process/test_supervisor.py",
    "kernels/test_kept.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`: overload, soak and chaos take minutes instead of seconds, and all references are asked."""
    parser.addoption("--long", action="store_true", help="minutes of faults, and all references")


def pytest_configure(config: pytest.Config) -> None:
    """The markers that this project has of its own."""
    for mark in (turns.MARK, lanes.MARK):
        config.addinivalue_line("markers", mark)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first: one that begins last leaves a core alone until it is through.

    Costly cases take turns, unless all are asked for or one by its name.
    """
    if not config.getoption("--long") and not any("::" in asked for asked in config.args):
        config.hook.pytest_deselected(items=turns.take_turns(items, share_of_commit()))
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(places)))
    lanes.those_alone_last(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """The wait for its turn is not a part of the time that a test may take."""
    with lanes.turn(lanes.is_alone(item)):
        return (yield)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says at the top which data the run uses, how much of it, and whether SGLang's tests are in it."""
    found = real_data()
    data = f"{found.catalog.parent}" if found else "generated (XGR_TEST_DATA is not set)"
    sglang = "installed" if SGLANG else "not installed, tests/sglang is left out (./deploy/test runs it)"
    share = f"share {share_of_commit() + 1} of {SHARES}, by the commit (--long asks all)"
    asked = "all" if config.getoption("--long") else share
    return [f"test data: {data}", f"references and costly cases: {asked}", f"sglang: {sglang}"]


@pytest.fixture(scope="session")
def test_data() -> TestData:
    """See `instruments.find_data`."""
    return find_data()


@pytest.fixture(scope="session")
def checkpoint(test_data: TestData) -> Path:
    """A model folder in Hugging Face form, tokenizer included."""
    return test_data.model


@pytest.fixture(scope="session")
def catalog_source(test_data: TestData) -> Path:
    """An index.json (real) or a catalog.jsonl (generated) that fits `checkpoint`."""
    return test_data.catalog


@pytest.fixture(scope="session")
def histories(test_data: TestData) -> list[dict[str, Any]]:
    """One row per user: user, history (item ids, oldest first), next."""
    return [json.loads(line) for line in test_data.histories.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def items(catalog_source: Path, checkpoint: Path) -> Items:
    """The catalog as a plain dict."""
    return read_items(catalog_source, checkpoint)


@pytest.fixture(scope="session")
def oracle(checkpoint: Path) -> Oracle:
    """The same checkpoint in Hugging Face's hands."""
    return Oracle(checkpoint)


@pytest.fixture(scope="session")
def rows(histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Twelve users, from the shortest history to a long one."""
    by_length = sorted(histories, key=lambda row: len(row["history"]))
    return by_length[:: len(by_length) // 12][:12]


@pytest.fixture(scope="session")
def users(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Their histories, item ids, oldest first."""
    return [[str(item) for item in row["history"][-64:]] for row in rows]


@pytest.fixture(scope="session")
def prompts(users: list[list[str]], items: Items) -> list[list[int]]:
    """Their prompts: the begin token and the SIDs, oldest first."""
    return [[1, *(token for item in history for token in items.sids[item])] for history in users]


@pytest.fixture(scope="session")
def references(
    catalog_source: Path,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    items: Items,
    oracle: Oracle,
    request: pytest.FixtureRequest,
) -> list[Reference]:
    """The commit's share of those beside the real catalog, all with `--long`; else a few computed now."""
    if stored := stored_references(catalog_source.parent):
        return stored if request.config.getoption("--long") else share_of(stored, share_of_commit())
    return [
        Reference(prompt, oracle.hugging_face(prompt, items, width), str(row["next"]))
        for row, prompt in zip(rows, prompts, strict=True)
        for width in (8, 20)
    ]


@pytest.fixture(scope="session", autouse=True)
def no_template_is_left() -> Iterator[None]:
    """Those that deployments of the run have shared end with it."""
    yield
    close_all()


@pytest.fixture(scope="session")
def deployment(checkpoint: Path, catalog_source: Path) -> Iterator[Deployment]:
    """One prefill and one decode worker, for all tests that leave them as they are."""
    config = ServeConfig(
        model_path=str(checkpoint),
        catalog=str(catalog_source),
        port=0,
        kv_bytes=256 << 20,
        log_level="WARNING",
        silence=60.0,  # nobody dies here, and a machine may be busy
    )
    with deployment_of(config) as running:
        yield running


@pytest.fixture(scope="session")
def threads() -> Iterator[ThreadPoolExecutor]:
    """Sixteen callers at a time."""
    with ThreadPoolExecutor(16) as pool:
        yield pool
