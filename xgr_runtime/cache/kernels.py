"""The part of the cache folder that holds compiled kernels: one folder per version of them and per processor.

For a CPU its name is made from the content of all kernels' sources, so that an edit anywhere makes a new one:
numba by itself sees changes in a kernel's own file alone. It is also made from their paths and times: numba
compiles again where those differ, so the folder of another installation may be complete, and hold nothing for
us. For GPUs it is made from the versions of libraries, which compile there and see to sources by themselves.
Whoever compiles does so alone, then marks what is complete.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

from xgr_runtime.cache.unused import IN_USE, remove_unused

log = logging.getLogger(__name__)

KEPT = 4  # folders of other versions and processors than ours stay until there are more than this
KEPT_BYTES = 4 << 30  # or until they take more together
PATIENCE = 600.0  # seconds for which another process may compile; then it seems to hang
_LOOK_EVERY = 0.1  # seconds
_PREFIXES = {"cpu": "kernels-", "gpu": "gpu-kernels-"}
_GPU_COMPILERS = ("flashinfer-python", "triton", "apache-tvm-ffi", "sglang", "torch")
_ONE_COMPILES = "compiling"
_PROCESSOR = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")


class KernelFolder:
    """Compiled kernels of this version, below the folder `cache`: for this processor, or for GPUs."""

    def __init__(self, cache: Path, kind: Literal["cpu", "gpu"] = "cpu") -> None:
        self._prefix = _PREFIXES[kind]
        self.path = cache / f"{self._prefix}{kernel_key() if kind == 'cpu' else gpu_kernel_key()}"
        self._held = -1  # a descriptor whose lock says that we use it

    def ready(self, mark: str) -> bool:
        """Whether every kernel is there that `mark` stands for: the type of a model, or more than that."""
        return self._is_sound() and self._mark(mark).is_file()

    @property
    def fresh(self) -> bool:
        """Whether nothing was ever completed in it."""
        return not any(self.path.glob("*.complete"))

    def use(self) -> None:
        """Keep it from being removed until `leave`, or the end of this process. Raises OSError."""
        if os.path.lexists(self.path) and not self._is_sound():
            log.warning("%s is damaged: it is made anew", self.path)
            aside = Path(tempfile.mkdtemp(dir=self.path.parent))
            self.path.rename(aside / "damaged")
            shutil.rmtree(aside, ignore_errors=True)
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self.path / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed either
                fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                self._held = fd
                os.utime(self.path)
                return
            os.close(fd)  # it was removed before it was locked

    def leave(self) -> None:
        """It may be removed."""
        os.close(self._held)

    @contextlib.contextmanager
    def compiling(self, stopping: Callable[[], bool] = bool) -> Iterator[None]:
        """Nobody else compiles meanwhile; whoever hangs is waited for until `PATIENCE`. Raises OSError."""
        with (self.path / _ONE_COMPILES).open("w") as stream:
            until = time.monotonic() + PATIENCE
            while not _lock(stream) and not stopping() and time.monotonic() < until:
                time.sleep(_LOOK_EVERY)
            yield

    def complete(self, mark: str) -> None:
        """All that `mark` stands for is there. Raises OSError."""
        self._mark(mark).touch()
        self._remove_old()

    def _is_sound(self) -> bool:
        """Whether it is a folder in which nothing else stands where our files should."""
        if self.path.is_symlink() or not self.path.is_dir():
            return False
        ours = (self.path / IN_USE, self.path / _ONE_COMPILES, *self.path.glob("*.complete"))
        return all(stat.S_ISREG(path.lstat().st_mode) for path in ours if os.path.lexists(path))

    def _mark(self, mark: str) -> Path:
        return self.path / f"{mark}.complete"

    def _remove_old(self) -> None:
        """Those used last stay, and what a process uses. Raises OSError."""
        found = [path for path in self.path.parent.glob(f"{self._prefix}*") if path != self.path]
        remove_unused(found, KEPT, KEPT_BYTES, "kernels of another version")


def kernel_key() -> str:
    """Names what compiled kernels depend on: their sources, their compiler and the processor."""
    digest = hashlib.sha256()
    for part in (sys.version, *map(version_of, ("numba", "llvmlite", "numpy")), *processor()):
        digest.update(part.encode() + b"\n")
    for path in _sources():
        digest.update(f"{path} {path.stat().st_mtime_ns}\n".encode(errors="surrogateescape"))
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def gpu_kernel_key() -> str:
    """Names what compiles a GPU's kernels. Below it, libraries tell sources and kinds of GPUs apart."""
    parts = [sys.version, platform.machine(), *map(version_of, _GPU_COMPILERS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def processor() -> list[str]:
    """What sets this processor apart from others, in the words of the system."""
    known = [platform.system(), platform.machine(), platform.processor()]
    with (
        contextlib.suppress(OSError),
        Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines,
    ):
        for line in lines:
            name, _, value = line.partition(":")
            if not value:
                break  # the next core's
            if name.strip() in _PROCESSOR:
                known.append(value.strip())
    return known


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("xgr_kernels")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))


def version_of(package: str) -> str:
    """The package and its version; the name alone where it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _lock(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: several may compile the same
        return True
    return True
