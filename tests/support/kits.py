"""Artefacts of public projects, and what their own evaluation code gave: under `kits` of XGR_TEST_DATA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KITS = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "kits"


def laid_out(kit: str, folder: Path) -> Path:
    """Where the checkpoints of a kit lie as their training scripts left them: unpacked under `folder`."""
    if not (KITS / kit).is_dir():
        pytest.skip("XGR_TEST_DATA names no folder with kits")
    out = folder / kit
    if not out.exists():
        command = [sys.executable, str(KITS / "unpack.py"), str(KITS / kit), str(out)]
        subprocess.run(command, check=True, capture_output=True)
    return out
