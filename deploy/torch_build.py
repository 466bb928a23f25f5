"""Prints which torch the running Python has (cpu, cuda or none) without importing it, which takes seconds."""

import importlib.util
import runpy
from pathlib import Path


def torch_build() -> str:
    """cpu, cuda (or another accelerator's build) or none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return "cuda" if any(version.get(name) for name in ("cuda", "hip", "xpu")) else "cpu"


if __name__ == "__main__":
    print(torch_build())
