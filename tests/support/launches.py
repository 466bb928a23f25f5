"""Counts what a forward launches on a GPU, without one: on meta tensors nothing is computed.

    with recorded() as launches:
        model.forward(...)

Operations of torch count as they reach the device: composed ones by their parts, views and allocations not at
all. Triton's kernels are recorded instead of run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import KernelInterface

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_FREE = ("empty", "new_empty", "detach", "_unsafe_view", "lift_fresh", "alias")


class Launch(NamedTuple):
    """One kernel: its floating-point operations, where it is a product, and bytes read and written."""

    name: str
    flop: float
    bytes: float

    @property
    def product(self) -> bool:
        """Whether it multiplies matrices."""
        return self.name in _PRODUCTS


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """All that is launched inside, in order."""
    made: list[Launch] = []

    def record(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            tensors = dict(zip(kernel.arg_names, args, strict=False))
            made.append(Launch(kernel.fn.__name__, 0.0, _moved(tensors, constants)))

        return launch

    with pytest.MonkeyPatch.context() as patch, _Operations(made):
        patch.setattr(KernelInterface, "__getitem__", record)
        yield made


class _Operations(TorchDispatchMode):
    """Records operations of torch."""

    def __init__(self, made: list[Launch]) -> None:
        super().__init__()
        self._made = made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # for the parts of a composed operation
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").split(".")[0]
        if not (name.startswith(_FREE) or _is_view(func)):
            self._made.append(Launch(name, _flop(name, args), _bytes((args, kwargs), out)))
        return out


def _moved(tensors: Mapping[str, Any], constants: Mapping[str, Any]) -> float:
    """Bytes that a row kernel moves, by its arguments; 0 for other kernels, whose work is known elsewhere."""
    sizes = {
        name: float(x.numel() * x.element_size()) for name, x in tensors.items() if isinstance(x, Tensor)
    }
    if "p_delta" in sizes:
        return sizes["p_x"] * (4 if constants["ADDS"] else 2) + sizes["p_weight"]
    if "p_gate_up" in sizes:
        return sizes["p_gate_up"] + sizes["p_out"]
    if "p_qkv" in sizes:
        Hq, Hkv = constants["Hq"], constants["Hkv"]
        head = sizes["p_qkv"] / (Hq + 2 * Hkv)
        heads = Hq + (2 if constants["STORES"] else 1) * Hkv
        return 2 * head * heads + sizes["p_cos"] + sizes["p_sin"]
    return 0.0


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _flop(name: str, args: Any) -> float:
    if name not in _PRODUCTS:
        return 0.0
    a, b = [x for x in args if isinstance(x, Tensor)][-2:]
    return 2.0 * a.numel() * b.shape[-1]


def _bytes(inputs: Any, out: Any) -> float:
    tensors = [x for x in pytree.tree_leaves((inputs, out)) if isinstance(x, Tensor)]
    return float(sum(x.nbytes for x in tensors))
