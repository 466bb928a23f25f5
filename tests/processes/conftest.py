"""One deployment of real processes for the whole session, and what its answers are held against."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from freed import assert_all_freed
from items import Items, read_items
from oracle import Oracle

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launch import Deployment


@pytest.fixture(scope="session")
def deployment(checkpoint: Path, catalog_source: Path) -> Iterator[Deployment]:
    """One prefill and one decode worker."""
    config = ServeConfig(
        model_path=str(checkpoint),
        catalog=str(catalog_source),
        port=0,
        kv_bytes=256 << 20,
        log_level="WARNING",
    )
    with Deployment(config) as running:
        yield running


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Iterator[XgrClient]:
    """A client; once a module is through with it, nothing may be held anywhere."""
    with XgrClient(deployment.url, timeout=120.0) as open_client:
        yield open_client
        assert_all_freed(open_client)


@pytest.fixture(scope="session")
def threads() -> Iterator[ThreadPoolExecutor]:
    """Sixteen callers at a time."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


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
