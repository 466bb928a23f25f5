"""The device, or its stand-ins where there is none, and a lab for each test."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import results

if TYPE_CHECKING:
    from lab import Lab

ROOT = Path(__file__).resolve().parents[2]


def pytest_configure(config: pytest.Config) -> None:
    """Before Triton is imported."""
    import torch

    if torch.cuda.is_available():
        return
    if not (config.option.smoke or config.option.collectonly):
        raise pytest.UsageError("there is no GPU here; --smoke tries the tests without one")
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)  # toy sizes gain nothing from more
    import stand_ins

    stand_ins.install()


def pytest_sessionfinish() -> None:
    """Ends what toy deployments were forked from."""
    if shared := sys.modules.get("shared_templates"):
        shared.close_all()


@pytest.fixture(scope="session")
def opened_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The process's own, with the rates that it measured. Later processes find its checkpoints."""
    from header import header
    from lab import Lab, measure_rates

    option = request.config.option
    out, scratch = Path(option.out), tmp_path_factory.getbasetemp().parent
    lab = Lab(option.smoke, out, scratch, option.seed, layers=option.layers)
    with lab.device.running():
        lab.rates = measure_rates(lab)
    results.append(out, {"header": header(ROOT, option.seed) | {"rates": lab.rates}})
    return lab


@pytest.fixture
def lab(opened_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Random numbers by the run's seed and the test's name alone; behind the test the device is cleared."""
    opened_lab.start(request.config.option.seed ^ zlib.crc32(request.node.nodeid.encode()))
    with opened_lab.device.running():
        yield opened_lab
    for name in ("last_exc", "last_value", "last_traceback"):  # a failure's frames hold on to tensors
        vars(sys).pop(name, None)
    if not opened_lab.alive():
        print("the device is lost: another process goes on", file=sys.stderr, flush=True)
        os._exit(3)  # an ordinary end would ask the device
    opened_lab.renew()
