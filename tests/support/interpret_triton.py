"""Without a GPU, Triton's kernels are interpreted. Import this before anything that imports Triton.

Triton asks once. Not beside SGLang, whose kernels are Triton's too and are tested as people run them.
"""

import importlib.util
import os
from typing import Any

import torch


def interpret() -> None:
    """From now on, and quicker than Triton does: it repeats for every call what holds for a whole launch."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter

    interpreter._get_np_dtype = _kept(interpreter._get_np_dtype)
    interpreter._patch_lang = _only_once(interpreter)


def _kept(numpy_type: Any) -> Any:
    """The same for each name of a type: Triton makes a table of all of them at every use."""
    known: dict[str, Any] = {}

    def found(triton_type: Any) -> Any:
        name = triton_type.scalar.name
        if name not in known:
            known[name] = numpy_type(triton_type)
        return known[name]

    return found


def _only_once(interpreter: Any) -> Any:
    """A launch replaces Triton's language; functions that its kernel calls find it replaced."""
    replace, language = interpreter._patch_lang, interpreter.tl

    def replaced(function: Any) -> Any:
        modules = [x for x in function.__globals__.values() if x is language or x is language.core]
        if any(language.core.is_builtin(module.arange) for module in modules):
            return replace(function)
        return interpreter._LangPatchScope()

    return replaced


if importlib.util.find_spec("sglang") is None and not torch.cuda.is_available():
    interpret()
