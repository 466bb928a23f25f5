"""One deployment of real processes for the whole session, and what its answers are held against."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from freed import assert_all_freed

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment


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
