"""What a GPU's kernels are compiled with, and whether it is there: a list of checks, each with its remedy.

FlashInfer compiles its kernels by nvcc, a C++ compiler and ninja when a model first runs on a machine, and
Triton's need a C compiler and Python's headers. Without one of them a start ends after minutes of loading.
Here no GPU is asked for anything and no library is imported: all of it takes some tenths of a second.
"""

import logging
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xgr_runtime.config.surroundings import CudaVersion, Surroundings, look_around, version_of
from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

OLDEST_NVCC: CudaVersion = (12, 8)  # the first with --compress-mode, which FlashInfer 0.6.18 asks for
_TRIAL_SECONDS = 60.0  # that an empty file may take
ERROR = re.compile(r"\b(error|fatal|cannot find)\b", re.IGNORECASE)  # in what compilers say


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at. `remedy` says what to do or to type; empty where all is well."""

    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + (f": {self.remedy}" if self.remedy else "")


def check_toolchain(device: str, *, first: bool, around: Surroundings | None = None) -> None:
    """Raises `ConfigError` where kernels for `device` could not be compiled; each thing that is missing is
    logged. On a CPU nothing is looked at.

    Unless it is the `first` time here, all may be compiled: without compilers it can be tried.
    """
    if not device.startswith("cuda"):
        return
    around = around or look_around(thorough=first)
    refused = first or not _has_gpu(around)
    wrong = [found for found in diagnose(around) if found.remedy]
    if len(wrong) > 1 or not refused:
        for found in wrong:
            log.log(logging.ERROR if refused else logging.WARNING, "%s", found)
    if wrong and refused:
        more = f"; all {len(wrong)} are told above" if wrong[1:] else ""
        raise ConfigError(f"--device {device} cannot be used here: {wrong[0]}{more}")


def diagnose(around: Surroundings) -> list[Diagnosis]:
    """Every check; without a GPU's torch or driver those two alone, for the others matter only with both."""
    basis = [_torch(around), _driver(around)]
    if not _has_gpu(around):
        return basis
    c = _compiler(around, "C compiler", "CC", ("gcc", "clang"), "gcc")
    return [*basis, *([] if around.precompiled else _of_flashinfer(around)), c, _headers_of_python(around)]


def _has_gpu(around: Surroundings) -> bool:
    return not (_torch(around).remedy or _driver(around).remedy)


def _of_flashinfer(around: Surroundings) -> list[Diagnosis]:
    """Tools, and if all are there, what they make of an empty file."""
    tools = [_nvcc(around), _compiler(around, "C++ compiler", "CXX", ("c++",), "g++"), _ninja(around)]
    if any(found.remedy for found in tools):
        return tools
    return [*tools, _libraries(around), *([_trial(around)] if around.thorough else [])]


def _torch(around: Surroundings) -> Diagnosis:
    if around.torch_cuda is None:
        remedy = "install one for CUDA (pip install torch), or use --device cpu"
        return Diagnosis("torch", "built for CPUs", remedy)
    return Diagnosis("torch", f"built for CUDA {_dotted(around.torch_cuda)}")


def _driver(around: Surroundings) -> Diagnosis:
    has, wanted = around.driver_cuda, around.torch_cuda
    if has is None:
        return Diagnosis(
            "NVIDIA driver",
            "there is none",
            "install it, in a container ask for it (--gpus all), or use --device cpu",
        )
    if wanted and has[0] < wanted[0]:
        return Diagnosis(
            "NVIDIA driver",
            f"runs CUDA {_dotted(has)} at most, torch was built for {_dotted(wanted)}",
            f"install a newer driver, or a torch for CUDA {has[0]} "
            f"(pip install torch --index-url https://download.pytorch.org/whl/cu{has[0]}{has[1]})",
        )
    return Diagnosis("NVIDIA driver", f"runs CUDA {_dotted(has)}")


def _nvcc(around: Surroundings) -> Diagnosis:
    nvcc = around.nvcc
    wanted = around.torch_cuda or OLDEST_NVCC
    install = f"install CUDA's compiler of version {_dotted(max(wanted, OLDEST_NVCC))} "
    install += f"(apt-get install cuda-toolkit-{wanted[0]}-{wanted[1]}), and set CUDA_HOME to its folder"
    version = version_of(nvcc)
    if version is None:
        return Diagnosis("nvcc", f"there is none that runs at {nvcc}", install)
    if version < OLDEST_NVCC or version[0] != wanted[0]:
        return Diagnosis("nvcc", f"{nvcc} is of CUDA {_dotted(version)}", install)
    return Diagnosis("nvcc", f"{nvcc} of CUDA {_dotted(version)}")


def _libraries(around: Surroundings) -> Diagnosis:
    """Whether what FlashInfer links against is found; nvcc may be a link from somewhere without them."""
    libraries = around.cuda_home / "lib64"
    searched = [f"-L{libraries}", f"-L{libraries / 'stubs'}", "-lcudart", "-lcuda"]
    wrong = _tried(around, around.environ.get("CXX", "c++"), "empty.cpp", ["-shared", *searched])
    if wrong:
        remedy = "set CUDA_HOME to the folder of a whole toolkit, with bin/nvcc and lib64"
        return Diagnosis("CUDA's libraries", wrong, f"{remedy}, or say by LIBRARY_PATH where they are")
    return Diagnosis("CUDA's libraries", str(libraries))


def _trial(around: Surroundings) -> Diagnosis:
    """nvcc knows C++ compilers up to a version, and needs headers of its toolkit."""
    host = ["-ccbin", around.environ["CC"]] if around.environ.get("CC") else []
    wrong = _tried(around, str(around.nvcc), "empty.cu", [*host, "-std=c++17", "-c"])
    if wrong:
        remedy = "set CC and CXX to an older C++ compiler if nvcc does not know this one"
        return Diagnosis("nvcc's trial", wrong, f"{remedy}, else install all of CUDA's toolkit")
    return Diagnosis("nvcc's trial", "it compiles")


def _tried(around: Surroundings, compiler: str, source: str, flags: Sequence[str]) -> str:
    """What a compiler finds wrong with an empty file; empty if nothing."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / source).touch()
        command = [*compiler.split(), source, *flags, "-o", "made"]
        environ = {**around.environ, "PATH": around.path}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environ, capture_output=True, text=True, timeout=_TRIAL_SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"{compiler} does not run ({error})"
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    first = next((line for line in lines if ERROR.search(line)), lines[0] if lines else "it says nothing")
    return first if done.returncode else ""


def _ninja(around: Surroundings) -> Diagnosis:
    found = shutil.which("ninja", path=around.path)
    return Diagnosis("ninja", found) if found else Diagnosis("ninja", "not on the PATH", "pip install ninja")


def _compiler(
    around: Surroundings, what: str, variable: str, names: Sequence[str], package: str
) -> Diagnosis:
    """One that `variable` names, or the first of `names` on the PATH, as those who call it look for it."""
    named = around.environ.get(variable)
    for name in [named] if named else names:
        if found := shutil.which(name.split()[0], path=around.path):
            return Diagnosis(what, found)
    if named:
        return Diagnosis(what, f"{variable}={named} is no program", f"set {variable} to one, or unset it")
    return Diagnosis(what, f"no {' or '.join(names)} on the PATH", f"apt-get install {package}")


def _headers_of_python(around: Surroundings) -> Diagnosis:
    header = around.headers / "Python.h"
    if header.is_file():
        return Diagnosis("Python's headers", str(around.headers))
    version = sysconfig.get_python_version()
    return Diagnosis("Python's headers", f"no {header}", f"apt-get install python{version}-dev")


def _dotted(version: CudaVersion) -> str:
    return f"{version[0]}.{version[1]}"
