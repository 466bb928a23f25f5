"""Attention on a CPU against torch's flash attention on the same tensors, in one run.

python tests/bench/attention.py [--threads 2] [--seconds 1] [--dtype float32]: prints a table of medians,
ours and torch's in turns, and one JSON line last. torch gets the GQA group folded into the rows where that
is possible, which is without a mask.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.attention import flash
from xgr_kernels.attention.causal import causal_attention
from xgr_kernels.attention.shared import SharedPlan, shared_attention
from xgr_kernels.cpu.compiled import use_threads

SMALL, LARGE = (6, 2, 32), (16, 8, 128)  # query heads, KV heads, head dimension
DECODE = [  # rows, prompt tokens
    *((SMALL, rows, L) for rows, L in ((256, 514), (128, 514), (50, 2000), (4, 2000), (1, 2000))),
    *((LARGE, rows, L) for rows, L in ((256, 2048), (50, 2000), (4, 2000), (1, 2000))),
]
PREFILL = [  # new tokens, those before them
    *((SMALL, new, before) for new, before in ((513, 0), (2000, 0), (512, 2048), (4, 2000))),
    *((LARGE, new, before) for new, before in ((513, 0), (2000, 0), (512, 2048), (4, 2000))),
]

flash_of_torch = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="per row of the table")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    use_threads(args.threads)
    torch.manual_seed(0)
    dtype, results = getattr(torch, args.dtype), []
    print("| case | heads | rows | keys before | ours, ms | torch, ms | ratio |\n" + "|---" * 7 + "|")
    for case, cells in (("decode", DECODE), ("prefill", PREFILL)):
        for (Hq, Hkv, D), rows, before in cells:
            work = Work(Hq, Hkv, D, rows, before, dtype)
            ours, theirs = in_turns(work, case == "prefill", args.seconds)
            heads = f"{Hq} / {Hkv} of {D}"
            ratio = theirs / ours
            print(f"| {case} | {heads} | {rows} | {before} | {ours:.3f} | {theirs:.3f} | {ratio:.1f} |")
            results.append({"case": case, "heads": heads, "rows": rows, "before": before})
            results[-1] |= {"ours_ms": round(ours, 3), "torch_ms": round(theirs, 3)}
    print(json.dumps({"threads": args.threads, "dtype": args.dtype, "results": results}))


class Work:
    """Rows of one request over keys that came before them, and in a prefill over themselves."""

    def __init__(self, Hq: int, Hkv: int, D: int, rows: int, before: int, dtype: torch.dtype) -> None:
        self.q = torch.randn(rows, Hq, D).to(dtype)
        self.k, self.v = (torch.randn(rows, Hkv, D).to(dtype) for _ in range(2))
        self.pool_k, self.pool_v = (torch.randn(max(before, 1), 1, Hkv, D).to(dtype) for _ in range(2))
        self.before = before
        self.scale = D**-0.5
        self.plan = SharedPlan([0, rows], [np.arange(before, dtype=np.int32)], [before], 1)

    def ours(self, causal: bool) -> None:
        prefix = None
        if self.before:
            prefix = shared_attention(self.q, self.pool_k, self.pool_v, self.plan, self.scale)
        if causal:
            causal_attention(self.q, self.k, self.v, [0, len(self.q)], self.scale, prefix)

    def torchs(self, causal: bool) -> None:
        """Over the prompt, causal over the rows themselves, and the merge of the two."""
        if self.before:
            o, lse = self._over_prompt()
        if causal:
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (self.q, self.k, self.v))
            own, own_lse = flash_of_torch(q, k, v, is_causal=True, scale=self.scale)
            own, own_lse = own[0].transpose(0, 1), own_lse[0].transpose(0, 1)
            if self.before:
                torch.lerp(own.float(), o.float(), torch.sigmoid(lse - own_lse).unsqueeze(-1)).to(own.dtype)

    def _over_prompt(self) -> tuple[Tensor, Tensor]:
        """o [R, Hq, D], lse [R, Hq] natural log."""
        (R, Hq, D), Hkv = self.q.shape, self.k.shape[1]
        group = Hq // Hkv
        folded = self.q.view(R, Hkv, group, D).transpose(0, 1).reshape(1, Hkv, R * group, D)
        k, v = (x[:, 0].transpose(0, 1).unsqueeze(0) for x in (self.pool_k, self.pool_v))
        o, lse = flash_of_torch(folded, k, v, scale=self.scale)
        o = o.view(Hkv, R, group, D).transpose(0, 1).reshape(R, Hq, D)
        return o, lse.reshape(Hkv, R, group).transpose(0, 1).reshape(R, Hq)


def in_turns(work: Work, causal: bool, seconds: float) -> tuple[float, float]:
    """Medians of both, in ms."""
    flash.warm_up(work.q.dtype)
    times: tuple[list[float], list[float]] = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, into in zip((work.ours, work.torchs), times, strict=True):
            start = time.perf_counter()
            run(causal)
            into.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
