"""The machine-readable line of a run: where, with what, how, and all points."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xgr_runtime.cli.bench.measures import Point

PACKAGES = ("xgr-runtime", "torch", "transformers", "sglang", "aiohttp", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, kernel."""
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}


def versions() -> dict[str, str]:
    """Of Python and of those packages that are installed beside this one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def figures(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Points as JSON values: four digits are more than they are worth, and nan is null."""
    return [{key: _plain(value) for key, value in dataclasses.asdict(p).items()} for p in points]


def settings(args: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the run, without what argparse adds."""
    return {
        key: value if isinstance(value, int | float | str | None) else str(value)
        for key, value in args.items()
        if key not in ("func", "command")
    }


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.5g}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
