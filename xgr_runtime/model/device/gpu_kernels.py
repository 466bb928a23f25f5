"""A GPU's kernels, which libraries compile as they are first called: where these keep them, who compiles, and
what the log says of it.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.config.surroundings import tool_path
from xgr_runtime.config.toolchain import ERROR
from xgr_runtime.errors import StartupError

log = logging.getLogger(__name__)

# By which libraries are told where to keep what they compile; each gets a folder in ours.
FOLDERS = {
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TRITON_CACHE_DIR": "triton",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",  # SGLang's own, in its earlier releases
    "SGLANG_JIT_CACHE_DIR": "sglang",
}
MOST_LINES, MOST_CHARACTERS = 20, 300  # that are logged of what a compiler says
_COMMAND = re.compile(r"^\[\d+/\d+\]| -o ")  # ninja's, kilobytes long


def keep_gpu_kernels(cache: Path | None) -> KernelFolder | None:
    """Let libraries keep compiled kernels in the cache folder, and find their tools.

    To be called before FlashInfer is imported, which looks once. What the environment says already stands.
    None where nothing can be kept; each library then has a folder of its own in the user's home.
    """
    os.environ["PATH"] = tool_path(os.environ)
    if cache is None:
        return None
    folder = KernelFolder(cache, "gpu")
    try:
        folder.use()
    except OSError as error:
        log.warning("kernels of the GPU are kept where libraries do by themselves: %s", error)
        return None
    for variable, name in FOLDERS.items():
        os.environ.setdefault(variable, str(folder.path / name))
    return folder


@contextlib.contextmanager
def compiled_once(
    folder: KernelFolder | None, what: Sequence[object], stopping: Callable[[], bool] = bool
) -> Iterator[None]:
    """Run what calls kernels for the first time, while no other worker does where any may be missing.

    `what` they depend on besides versions: a worker that comes later and has the same does not wait.
    `stopping` ends the wait.
    """
    mark = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    with told():
        if folder is None or folder.ready(mark):
            yield
            return
        log.info("kernels are compiled on this machine for the first time: it takes minutes, and once")
        with folder.compiling(stopping):
            yield
            with contextlib.suppress(OSError):  # a full disk: the next start looks again
                folder.complete(mark)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say what is compiled inside, and how long it takes."""
    with _flashinfer_told(), _triton_told():
        yield


@contextlib.contextmanager
def _flashinfer_told() -> Iterator[None]:
    """FlashInfer compiles one module at a time, each for a minute or more, and says nothing."""
    names = vars(_library("flashinfer.jit.core"))
    kinds = [names.get(name) for name in ("JitSpecNvcc", "JitSpec")]  # the former in later releases
    kind: Any = next((kind for kind in kinds if kind is not None and "build" in vars(kind)), None)
    if kind is None:
        yield
        return
    original = kind.build
    kind.build = _timed(original)
    try:
        yield
    finally:
        kind.build = original


def _library(name: str) -> ModuleType:
    """The module, or an empty one: what is wrong with a library is said where it is used."""
    try:
        return importlib.import_module(name)
    except Exception:
        return ModuleType(name)


def _timed(build: Callable[..., Any]) -> Callable[..., Any]:
    """A `build` that tells, and raises StartupError where a compiler fails.

    Of a module that is there it only compares times of files.
    """

    def timed(spec: Any, *args: Any, **settings: Any) -> Any:
        if spec.is_compiled:
            return build(spec, *args, **settings)
        log.info("compiling FlashInfer's %s", spec.name)
        began = time.monotonic()
        try:
            result = build(spec, *args, **settings)
        except RuntimeError as error:  # with all that ninja and the compilers have said
            raise StartupError(f"FlashInfer's {spec.name} did not compile: {_complaint(error)}") from error
        log.info("compiled FlashInfer's %s in %.0f s", spec.name, time.monotonic() - began)
        return result

    return timed


def _complaint(error: RuntimeError) -> str:
    """The first line that names an error, with what most often helps; logs it with those around it."""
    lines = [line.strip()[:MOST_CHARACTERS] for line in str(error).splitlines() if not _COMMAND.search(line)]
    first = next((at for at, line in enumerate(lines) if ERROR.search(line)), 0)
    for line in lines[max(0, first - MOST_LINES // 2) : first + MOST_LINES // 2]:
        log.error("%s", line)
    said = lines[first] if lines else "nothing was said"
    return f"{said}; if nvcc does not know this C++ compiler, set CC and CXX to an older one"


@contextlib.contextmanager
def _triton_told() -> Iterator[None]:
    """Triton compiles many small kernels, each for a second or so: one line for all of them."""
    compilation: Any = getattr(_library("triton.knobs"), "compilation", None)
    if compilation is None:
        yield
        return
    compiled: list[tuple[float, str]] = []

    def listen(*, metadata: dict[str, Any], times: Any, cache_hit: bool, **_: object) -> None:
        if not cache_hit:
            compiled.append((times.total / 1e6, str(metadata.get("name"))))

    before, compilation.listener = compilation.listener, listen
    try:
        yield
    finally:
        compilation.listener = before
        if compiled:
            longest, name = max(compiled)
            seconds = sum(took for took, _ in compiled)
            log.info(
                "compiled %d of Triton's kernels in %.1f s, %s in %.1f", len(compiled), seconds, name, longest
            )
