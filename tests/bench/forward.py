"""Where a forward's time goes, against the floor set by its multiplications.

Usage: python tests/bench/forward.py MODEL [--threads 2] [--prompt 512] [--rows 256] [--dtype float32]

Times one prompt and one decode step at full width, each split into attention (the stage) and the rest (the
model's layers), the vocabulary head, and a forward of one row without attention, which is what Python and
dispatch cost. The floor is the same number of multiplications at the rate of large matmuls, timed in the same
run. Prints one JSON line last.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from floor import Shape, matmul_rate, packed_rate
from torch import Tensor

from xgr_kernels.attention.shared.api import SharedPlan
from xgr_kernels.cpu.compiled import use_threads
from xgr_runtime.model.base import DTYPES, ModelBackend, Stage
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.stages import CascadeStage, PrefillStage
from xgr_runtime.wire.messages import ModelIdentity

PAGE, TAIL = 16, 2


class Timed:
    """A stage that adds up the time spent in another one."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds = 0.0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        start = time.perf_counter()
        o = self._stage.attend(layer, q, k, v, scale)
        self.seconds += time.perf_counter() - start
        return o


class NoAttention:
    """A stage that does nothing, to see what is around it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return q


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    backend = load_backend("transformers", args.model, args.dtype)
    use_threads(args.threads)
    flops_per_second = matmul_rate(DTYPES[backend.identity.dtype])
    if DTYPES[backend.identity.dtype] is torch.float32:
        flops_per_second = max(flops_per_second, packed_rate())
    prefill = measure(backend, *prefill_case(backend, args.prompt), args.repeat)
    step = measure(backend, *decode_case(backend, args.prompt + 1, args.rows), args.repeat)
    shape = Shape.of(args.model, backend.identity, backend.q_heads)
    for case, flop in (
        (prefill, shape.forward_flop(args.prompt, args.prompt / 2)),
        (step, shape.forward_flop(args.rows, args.prompt + 1)),
    ):
        case["floor_ms"] = round(1e3 * flop / flops_per_second, 2)
    hidden = torch.randn(args.rows, backend.identity.hidden).to(DTYPES[backend.identity.dtype])
    one = torch.ones(1, dtype=torch.int64)
    result = {
        "threads": args.threads,
        "dtype": args.dtype,
        "gflops": round(flops_per_second / 1e9, 1),
        "prefill": prefill,
        "decode_step": step,
        "head_ms": median_ms(lambda: backend.logits(hidden), args.repeat),
        "dispatch_ms": median_ms(lambda: backend.forward(one, one, NoAttention()), args.repeat),
    }
    # A request of four levels: the prompt, then three steps, each with a head of all its rows.
    result["request_ms"] = round(prefill["total_ms"] + 3 * (step["total_ms"] + result["head_ms"]), 1)
    for name, value in result.items():
        print(f"{name:12} {value}")
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Where a forward's time goes.")
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens")
    parser.add_argument("--rows", type=int, default=256, help="beams of the decode step")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=15)
    return parser.parse_args()


def prefill_case(backend: ModelBackend, length: int) -> tuple[Tensor, Tensor, Callable[[], Stage]]:
    """Tokens, positions and a maker of stages for one prompt."""
    pool, pages = make_pool(backend.identity, length)
    tokens = torch.randint(3, backend.identity.vocab, (length,))
    return tokens, torch.arange(length), lambda: PrefillStage(pool, [(0, length, pages)])


def decode_case(backend: ModelBackend, length: int, rows: int) -> tuple[Tensor, Tensor, Callable[[], Stage]]:
    """The last step of a request: one tail token is stored, another is being added."""
    identity = backend.identity
    pool, pages = make_pool(identity, length)
    pool.k.normal_()
    pool.v.normal_()
    tail = TailKv(identity, TAIL, rows)
    plan = SharedPlan([0, rows], [pages], [length], PAGE)
    anc = torch.randint(0, rows, (rows, TAIL))
    own, tail_len = torch.arange(rows), torch.ones(rows, dtype=torch.int64)
    tokens = torch.randint(3, identity.vocab, (rows,))
    positions = torch.full((rows,), length + 1)
    return tokens, positions, lambda: CascadeStage(pool, plan, tail.k, tail.v, anc, own, tail_len)


def make_pool(identity: ModelIdentity, length: int) -> tuple[KvPool, np.ndarray]:
    pages = np.arange(-(-length // PAGE), dtype=np.int32)
    return KvPool(identity, len(pages), PAGE), pages


def measure(
    backend: ModelBackend, tokens: Tensor, positions: Tensor, make_stage: Callable[[], Stage], repeat: int
) -> dict[str, float]:
    """Medians in milliseconds: the whole forward, its attention, and the rest."""
    totals, attention = [], []
    for _ in range(repeat + 3):
        stage = Timed(make_stage())
        start = time.perf_counter()
        backend.forward(tokens, positions, stage)
        totals.append(time.perf_counter() - start)
        attention.append(stage.seconds)
    total, inside = (statistics.median(times[3:]) * 1e3 for times in (totals, attention))
    return {
        "total_ms": round(total, 2),
        "attention_ms": round(inside, 2),
        "layers_ms": round(total - inside, 2),
    }


def median_ms(run: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[2:]) * 1e3, 3)


if __name__ == "__main__":
    main()
