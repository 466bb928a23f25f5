"""Prints which torch the running Python has (cpu, cuda or none) without importing it, which takes seconds.

Usage: torch_build.py [VERSION]; a torch of another version counts as none.
"""

import importlib.metadata
import importlib.util
import runpy
import sys
from pathlib import Path


def torch_build(wanted: str | None = None) -> str:
    """cpu, cuda (or another accelerator's build) or none. `wanted` is a version without its +build."""
    spec, installed = importlib.util.find_spec("torch"), installed_version()
    if spec is None or spec.origin is None or installed is None:
        return "none"
    if wanted and installed.split("+")[0] != wanted:
        return "none"
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return "cuda" if any(build.get(name) for name in ("cuda", "hip", "xpu")) else "cpu"


def installed_version() -> str | None:
    """None where pip was interrupted, too: it unpacks the metadata after the package."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(torch_build(*sys.argv[1:]))
