"""The least time that a forward can take: its multiplications at the rate of large matrix products."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from xgr_runtime.checkpoint import weight_files
from xgr_runtime.model.backends.packed_linear import PackedLinear
from xgr_runtime.wire.messages import ModelIdentity


@dataclass(frozen=True)
class Shape:
    """A decoder, as far as multiplications go."""

    model: ModelIdentity
    q_heads: int
    matrices: int  # parameters of all layers' projections

    @classmethod
    def of(cls, folder: Path, model: ModelIdentity, q_heads: int) -> Shape:
        """Counted in the checkpoint itself."""
        matrices = 0
        for file in weight_files(folder):
            with safe_open(str(file), framework="pt") as tensors:
                shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
            matrices += sum(math.prod(s) for name, s in shapes.items() if len(s) == 2 and ".layers." in name)
        return cls(model, q_heads, matrices)

    def forward_flop(self, rows: int, keys: float) -> float:
        """All layers for `rows` rows that each attend to `keys` keys on average, without the head."""
        attention = 2 * self.model.layers * self.q_heads * self.model.head_dim * keys
        return 2.0 * rows * (self.matrices + attention)

    def head_flop(self, rows: int) -> float:
        """Logits of `rows` rows over the whole vocabulary."""
        return 2.0 * rows * self.model.hidden * self.model.vocab

    def request_flop(self, prompt: int, rows: Sequence[int]) -> float:
        """One request: its prompt, and a forward of rows[i] beams after level i, each with its head."""
        total = self.forward_flop(prompt, (prompt + 1) / 2) + self.head_flop(1)
        for tail, beams in enumerate(rows, 1):
            total += self.forward_flop(beams, prompt + tail) + self.head_flop(beams)
        return total


SIZES = (1024, 2048)


def matmul_rate(dtype: torch.dtype, sizes: Sequence[int] = SIZES, repeat: int = 9) -> float:
    """Multiply-adds times two per second: the best of torch's large square products, on its threads."""
    return _best_rate(dtype, lambda a, b: lambda: a @ b, sizes, repeat)


@torch.inference_mode()
def packed_rate(sizes: Sequence[int] = SIZES, repeat: int = 9) -> float:
    """The same in float32 by the products of our own layers, which torch's own do not reach on every CPU."""

    def product(a: Tensor, b: Tensor) -> Callable[[], object]:
        linear = PackedLinear([b])
        return lambda: linear(a)

    return _best_rate(torch.float32, product, sizes, repeat)


def _best_rate(
    dtype: torch.dtype,
    product: Callable[[Tensor, Tensor], Callable[[], object]],
    sizes: Sequence[int],
    repeat: int,
) -> float:
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / _least_seconds(product(a, b), repeat))
    return best


def _least_seconds(run: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat + 2):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times[2:])
