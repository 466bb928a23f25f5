"""tests/gpu is a suite of its own; its parts that need no GPU are imported here as it imports them."""

import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "gpu"
if str(GPU) not in sys.path:
    sys.path.append(str(GPU))


def pytest_configure(config: pytest.Config) -> None:
    """Markers of the other suite, which its modules use."""
    for name in ("cases", "times", "rare"):
        config.addinivalue_line("markers", f"{name}: see tests/gpu/pytest.ini")
