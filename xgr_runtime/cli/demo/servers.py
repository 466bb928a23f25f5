"""Starts the real topology on the prepared files: router, prefill worker and decode worker."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xgr_runtime.cli.demo.prepare import DemoFiles
    from xgr_runtime.config import Backend


@contextmanager
def start_servers(
    made: DemoFiles, host: str, port: int, backend: Backend = "auto", say: Callable[[str], object] = str
) -> Iterator[str]:
    """The base URL of a running deployment; everything it started is gone afterwards."""
    from xgr_runtime.config import ServeConfig
    from xgr_runtime.launcher.deployment import Deployment
    from xgr_runtime.launcher.kernels_first import starting

    config = ServeConfig(
        model_path=str(made.model),
        model_backend=backend,
        catalog=str(made.catalog),
        host=host,
        port=port,
        log_level="WARNING",
    )
    say(starting(config))
    with Deployment(config) as deployment:
        yield deployment.url
