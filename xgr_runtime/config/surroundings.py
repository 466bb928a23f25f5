"""What of a machine concerns a GPU's kernels: CUDA versions of torch, driver and nvcc, and where tools lie.

Libraries find these by themselves; here they are looked for in the same places, and none is imported.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CudaVersion = tuple[int, int]

_DEFAULT_CUDA = Path("/usr/local/cuda")  # where FlashInfer looks last
_NVCC_SECONDS = 20.0  # that it may take to tell its version


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at; tests make theirs."""

    environ: Mapping[str, str]
    headers: Path  # where Python's own should be
    torch_cuda: CudaVersion | None  # that torch was built for; None: for a CPU
    driver_cuda: CudaVersion | None  # the newest that the driver runs; None: there is no driver
    precompiled: bool = False  # FlashInfer's kernels came as a package
    thorough: bool = False  # let nvcc compile something, which takes it a second
    default_cuda: Path = _DEFAULT_CUDA

    @property
    def path(self) -> str:
        return tool_path(self.environ)

    @property
    def cuda_home(self) -> Path:
        """Where FlashInfer finds CUDA, in its order."""
        if named := self.environ.get("CUDA_HOME") or self.environ.get("CUDA_PATH"):
            return Path(named)
        found = shutil.which("nvcc", path=self.path)
        return Path(found).parents[1] if found else self.default_cuda

    @property
    def nvcc(self) -> Path:
        """The one that FlashInfer calls."""
        return Path(self.environ.get("FLASHINFER_NVCC") or self.cuda_home / "bin/nvcc")


def look_around(thorough: bool = False) -> Surroundings:
    """Those of this process."""
    return Surroundings(
        environ=os.environ,
        headers=Path(sysconfig.get_path("include")),
        torch_cuda=_cuda_of_torch(),
        driver_cuda=_cuda_of_driver(),
        precompiled=importlib.util.find_spec("flashinfer_jit_cache") is not None,
        thorough=thorough,
    )


def tool_path(environ: Mapping[str, str]) -> str:
    """The PATH on which tools are looked for: the programs of this Python's environment come last.

    pip puts ninja there, and whoever starts an environment's python by its path has not activated it.
    """
    path, ours = environ.get("PATH", os.defpath), sysconfig.get_path("scripts")
    return path if ours in path.split(os.pathsep) else os.pathsep.join([path, ours])


def version_of(nvcc: Path) -> CudaVersion | None:
    """None where it does not run."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=_NVCC_SECONDS)
        if found := re.search(r"release (\d+)\.(\d+)", told.stdout):
            return int(found[1]), int(found[2])
    return None


def _cuda_of_torch() -> CudaVersion | None:
    """Read from its file of versions: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
        major, minor = str(build.get("cuda")).split(".")[:2]
        return int(major), int(minor)
    return None


def _cuda_of_driver(library: str = "libcuda.so.1") -> CudaVersion | None:
    """What the driver's library says; the call needs no GPU and begins nothing."""
    version = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        if not ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version)):
            return version.value // 1000, version.value % 1000 // 10
    return None
