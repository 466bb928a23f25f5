"""What a run ran on: machine, versions, commit, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "flashinfer-python", "transformers", "sglang", "numpy", "numba")


def header(root: Path, seed: int) -> dict[str, Any]:
    """Facts for the top of the results; "" for what is not there."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _said("git", "-C", str(root), "rev-parse", "--short=12", "HEAD"),
        "changed_files": len(_said("git", "-C", str(root), "status", "--porcelain").splitlines()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "gpu": "",
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda or "",
        "seed": seed,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20,
        }
    return found | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
