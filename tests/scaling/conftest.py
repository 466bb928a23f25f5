"""Forty different requests and their answers from one prefill and one decode worker."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_templates import deployment_of

from xgr_runtime.client import Request, XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer

Deploy = Callable[..., Deployment]
WIDTHS = (1, 7, 20, 50, 128)


@pytest.fixture(scope="session")
def deploy(checkpoint: Path, catalog_source: Path) -> Deploy:
    """A deployment of the shared checkpoint and catalog with these settings, not yet started."""

    def make(**settings: Any) -> Deployment:
        # A busy machine would be reason enough to try two pairs, and tests count attempts.
        defaults: dict[str, Any] = {
            "port": 0,
            "kv_bytes": 64 << 20,
            "log_level": "WARNING",
            "hedge_after": 0.0,
            "silence": 60.0,  # nobody dies here
        }
        return deployment_of(
            ServeConfig(model_path=str(checkpoint), catalog=str(catalog_source), **(defaults | settings))
        )

    return make


@pytest.fixture(scope="session")
def queries(histories: list[dict[str, Any]]) -> list[Request]:
    """Different users, widths, modes and filters."""
    draw = random.Random(3)
    users = [[str(item) for item in row["history"]] for row in draw.sample(histories, 40)]
    seen = sorted({item for history in users for item in history})
    return [
        {
            "history": history,
            "beam_width": WIDTHS[number % len(WIDTHS)],
            "score_mode": "legal" if number % 3 == 0 else "vocab",
            "exclude_history": number % 4 == 0,
            "deny": draw.sample(seen, len(seen) // 2) if number % 7 == 0 else [],
        }
        for number, history in enumerate(users)
    ]


@pytest.fixture(scope="session")
def single(deployment: Deployment, queries: list[Request]) -> list[Answer]:
    """The answers of one prefill and one decode worker when one request is asked at a time."""
    with XgrClient(deployment.url) as client:
        return [client.generate(**query) for query in queries]
