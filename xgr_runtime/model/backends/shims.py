"""What SGLang's packages need where torch has no GPU, before the first `import transformers` of a process.

SGLang's wheels are made for CUDA. Beside a CPU torch some of them fail at import, one of them inside
transformers, so each process that will import transformers or sglang calls `install` first. No source is
patched.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import NoReturn

import torch

_CPU_KERNEL = "convert_weight_packed"  # by which SGLang itself tells whether the CPU's kernels are there

# torch forgets the operators of a library that is collected.
_declared: list[torch.library.Library] = []
_done = False


def needed() -> bool:
    """Whether sglang is installed and torch has no GPU to use."""
    return importlib.util.find_spec("sglang") is not None and not torch.cuda.is_available()


def install() -> None:
    """Make sglang and transformers importable in this process; nothing where not needed, or done already."""
    global _done
    if _done or not needed():
        return
    # Without it SGLang looks for an accelerator, finds none and asks for vllm's rotary kernels.
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    _stand_in_for_kernels()
    _declare_torchvision_operators()
    _done = True


def _stand_in_for_kernels() -> None:
    """SGLang imports names from sgl_kernel at load; without a CPU's kernels its models call torch instead."""
    with contextlib.suppress(Exception):  # missing, or made for CUDA: it fails to load in several ways
        importlib.import_module("sgl_kernel")
    if not hasattr(torch.ops.sgl_kernel, _CPU_KERNEL):
        sys.modules["sgl_kernel"] = _MissingKernels()


class _MissingKernels(types.ModuleType):
    """A module in which every name exists and fails when it is called."""

    def __init__(self) -> None:
        super().__init__("sgl_kernel")
        self.__spec__ = importlib.machinery.ModuleSpec("sgl_kernel", None, is_package=True)
        self.__path__: list[str] = []
        self.__version__ = "0.0"

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)  # `inspect` and `copy` ask for these and must hear no

        def missing(*_: object, **__: object) -> NoReturn:
            raise RuntimeError(f"sgl_kernel.{name} needs SGLang's kernels, which are not installed for a CPU")

        return missing


def _declare_torchvision_operators() -> None:
    """At import torchvision gives its `nms` operators a meta version, and fails where they do not exist.

    They live in its extension, which, built for CUDA, does not load beside a CPU torch. We never call them.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _loads(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)


def _loads(torchvision: Path) -> bool:
    """Whether torchvision's extension works beside this torch; importing torchvision loads it once more."""
    for extension in torchvision.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
            return True
        except OSError:
            continue
    return False
