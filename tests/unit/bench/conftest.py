"""A small catalog, a deployment that serves it, and the command that puts it under load."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_deployment import Bench, Deployment, Done, finish, listening, start

from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.cli import main


@pytest.fixture(scope="session")
def catalog_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 items of depth 3 over 4 + 5 + 6 codes."""
    sids = [list(sid) for sid in itertools.product(range(4), range(10, 15), range(20, 26))]
    path = tmp_path_factory.mktemp("catalog") / "index.json"
    path.write_text(json.dumps({f"item-{number}": sid for number, sid in enumerate(sids)}))
    return path


@pytest.fixture(scope="session")
def catalog(catalog_path: Path) -> Catalog:
    return load_catalog(catalog_path)


@pytest.fixture
def deployment(catalog: Catalog) -> Iterator[Deployment]:
    """It answers well until a test says otherwise."""
    with listening(catalog) as made:
        yield made


@pytest.fixture
def brief(deployment: Deployment, catalog_path: Path) -> list[str]:
    """The flags of a short run against the deployment."""
    given = ["--url", deployment.url, "--catalog", str(catalog_path), "--prompt-tokens", "30"]
    return [*given, "--duration", "0.6", "--warm-up", "0.1", "--beam-width", "5"]


@pytest.fixture
def bench(
    brief: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """Runs it against the deployment, briefly, and in this process: a start costs more than the run."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*flags: str, **environment: str) -> Done:
        for name, value in {"XGR_API_KEY": "", **environment}.items():
            monkeypatch.setenv(name, value)
        code = main(["bench", *brief, *flags])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def bench_process(brief: list[str]) -> Bench:
    """The same as a process of its own."""
    return lambda *flags, **environment: finish(start(*brief, *flags, **environment))
