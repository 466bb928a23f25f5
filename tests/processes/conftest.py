"""Deployments of real processes that the modules here share, each whole again after every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from freed import assert_all_freed
from ways import PAGE, SERVED, SIZES, WAYS, Served

from xgr_runtime.client import XgrClient
from xgr_runtime.launcher.deployment import Deployment


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Iterator[XgrClient]:
    """A client of the shared deployment; once a module is through with it, nothing may be held anywhere."""
    with XgrClient(deployment.url, timeout=120.0) as open_client:
        yield open_client
        assert_all_freed(open_client)


@pytest.fixture(scope="session", params=SERVED, ids="-".join)
def served(request: pytest.FixtureRequest, checkpoint: Path, catalog_source: Path) -> Iterator[Served]:
    """pytest brings the tests together that take the same one."""
    way, size = request.param
    settings = {"page_size": PAGE, **WAYS[way], **SIZES[size]}
    with Cluster(checkpoint, catalog_source, **settings) as cluster:
        yield Served(way, cluster)
