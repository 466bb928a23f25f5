"""Captured work on a device that is not there: tensors on `meta` have shapes and places, but no values.

A CUDA graph replays launches alone. So captured work may not copy between host and device, but to mark its
progress in pinned memory, and may not look at a value. What it allocates lies in a pool that all graphs
share: nothing of that may be kept, for another graph writes over it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from read_backs import NoReadBack
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xgr_kernels.attention.paged import PagedAttention
from xgr_kernels.attention.tail import cuda as tail_attention
from xgr_runtime.model.base import DTYPES
from xgr_runtime.model.device.device import HostDevice, Work
from xgr_runtime.wire.messages import ModelIdentity

META = torch.device("meta")


class MetaDevice(HostDevice):
    """A device without values; its `capture` raises for what a CUDA graph could not replay."""

    where = META

    def __init__(self) -> None:
        self.captured = 0
        self._staged: list[Tensor] = []

    def staging(self, *shape: int, dtype: torch.dtype) -> Tensor:
        self._staged.append(torch.zeros(*shape, dtype=dtype))
        return self._staged[-1]

    def capture(self, work: Work) -> Work:
        pinned = {_storage(x) for x in self._staged}
        with Marks(pinned):
            work()  # as on a GPU: what is made once and kept is made here
        with NoReadBack(), Captured() as watch, Marks(pinned):
            work()
        watch.check_that_nothing_is_kept()
        self.captured += 1
        return work


class Marks(TorchDispatchMode):
    """Lets work mark its progress in pinned memory, of which no value is copied."""

    def __init__(self, pinned: set[int]) -> None:
        """`pinned` are the storages."""
        super().__init__()
        self._pinned = pinned

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket is torch.ops.aten.copy_ and _storage(args[0]) in self._pinned:
            return args[0]
        return func(*args, **(kwargs or {}))


class Captured(TorchDispatchMode):
    """Fails where host and device meet, and keeps a list of what was allocated."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[str, StorageWeakRef]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = _tensors((args, kwargs))
        assert not _on_both(given), f"{func.name()} takes tensors of host and device"
        out = func(*args, **(kwargs or {}))
        got = _tensors(out)
        assert not _on_both([*given, *got]), f"{func.name()} copies between host and device"
        known = {_storage(x) for x in given}
        new = [x for x in got if x.device == META and _storage(x) not in known]
        self._made += [(func.name(), StorageWeakRef(x.untyped_storage())) for x in new]
        return out

    def check_that_nothing_is_kept(self) -> None:
        """Fails if what was allocated inside outlives it."""
        if not all(storage.expired() for _, storage in self._made):
            gc.collect()  # takes a while
        kept = [name for name, storage in self._made if not storage.expired()]
        assert not kept, f"memory of the graphs' pool is kept: the results of {', '.join(kept)}"


class PlacedAttention(PagedAttention):
    """An attention whose results lie where they always do, as those of a workspace; it computes nothing."""

    def __init__(self, identity: ModelIdentity, q_heads: int, rows: int) -> None:
        self.o = torch.empty(rows, q_heads, identity.head_dim, dtype=DTYPES[identity.dtype], device=META)
        self.lse2 = torch.empty(rows, q_heads, device=META)

    def attend(self, q: Tensor, k_pages: Tensor, v_pages: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        assert q.shape == self.o.shape and q.dtype == k_pages.dtype == v_pages.dtype == self.o.dtype
        return self.o, self.lse2


@contextmanager
def without_launches() -> Iterator[list[str]]:
    """Triton kernels are not run inside, but named."""
    launched: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        kind = type(tail_attention.tail_attention_kernel)
        patch.setattr(kind, "run", lambda kernel, *args, **kwargs: launched.append(kernel.__name__))
        yield launched


def _tensors(values: object) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _on_both(tensors: list[Tensor]) -> bool:
    """Whether they lie in memory of both; a number in host memory is passed along with a launch."""
    return len({x.device.type for x in tensors if x.dim() or x.device == META}) > 1


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
