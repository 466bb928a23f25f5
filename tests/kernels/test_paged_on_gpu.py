"""Paged attention with the real library on a real GPU: eager, and captured once for later plans."""

import importlib.util
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from xgr_kernels.attention.paged import AttentionSizes, PagedAttention, Workspace, device_facts

READY = torch.cuda.is_available() and importlib.util.find_spec("flashinfer") is not None
pytestmark = pytest.mark.skipif(
    not READY, reason="needs an NVIDIA GPU and FlashInfer (pip install 'xgr-runtime[cuda]')"
)

PAGE = 16
# bfloat16 keeps 8 bits of the probabilities and of o, whose values stay below 4; lse2 is a float32 sum
TOLERANCE, LSE_TOLERANCE = 2e-2, 1e-2
ALGORITHMS = ["fa2", "fa3"]


class Bench:
    """A pool, queries, and an attention over at most `rows` of them."""

    def __init__(
        self, Hq: int, Hkv: int, D: int, rows: int, requests: int, causal: bool, algorithm: str
    ) -> None:
        if algorithm == "fa3" and device_facts(torch.device("cuda", 0))[1][0] != 9:
            pytest.skip("FA3 needs a GPU of compute capability 9 (H100, H200)")
        device = torch.device("cuda", 0)
        self.sizes = AttentionSizes(Hq, Hkv, D, PAGE, torch.bfloat16, device, D**-0.5)
        self.causal = causal
        g = torch.Generator(device).manual_seed(0)
        shape = (400, PAGE, Hkv, D)
        self.k, self.v = (torch.randn(shape, generator=g, device=device).bfloat16() for _ in range(2))
        self.q = torch.randn(rows, Hq, D, generator=g, device=device).bfloat16()
        workspace = Workspace(self.sizes, rows=rows, requests=requests, page_entries=400)
        self.attention = PagedAttention(
            self.sizes,
            workspace,
            rows=rows,
            requests=requests,
            page_entries=400,
            causal=causal,
            algorithm=algorithm,
        )

    def attend(self) -> tuple[Tensor, Tensor]:
        return self.attention.attend(self.q, self.k, self.v, self.sizes.scale)

    def plan(self, widths: list[int], lengths: list[int], seed: int) -> tuple[list[int], list[np.ndarray]]:
        order = np.random.default_rng(seed).permutation(400).astype(np.int32)
        counts = [-(-length // PAGE) for length in lengths]
        pages = np.split(order[: sum(counts)], np.cumsum(counts)[:-1])
        offsets = np.cumsum([0, *widths]).tolist()
        self.attention.plan(offsets, pages, lengths)
        return offsets, pages

    def check(
        self, o: Tensor, lse2: Tensor, offsets: list[int], pages: list[np.ndarray], lengths: list[int]
    ) -> None:
        group = self.sizes.q_heads // self.sizes.kv_heads
        for (first, last), ids, length in zip(pairwise(offsets), pages, lengths, strict=True):
            if first == last:
                continue
            if length == 0:
                assert (o[first:last] == 0).all() and (lse2[first:last] < -1e4).all()
                continue
            index = torch.from_numpy(ids).long().cuda()
            keys, values = (x[index].flatten(0, 1)[:length].double() for x in (self.k, self.v))
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            scores = torch.einsum("whd,lhd->whl", self.q[first:last].double(), keys) * self.sizes.scale
            if self.causal:
                seen = torch.ones(last - first, length, dtype=torch.bool, device="cuda")
                scores.masked_fill_(~seen.tril(length - (last - first)).unsqueeze(1), -math.inf)
            want = torch.einsum("whl,lhd->whd", scores.softmax(-1), values)
            torch.testing.assert_close(o[first:last].double(), want, rtol=0, atol=TOLERANCE)
            want = scores.logsumexp(-1) / math.log(2)
            torch.testing.assert_close(lse2[first:last].double(), want, rtol=0, atol=LSE_TOLERANCE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("causal", [False, True], ids=["shared", "causal"])
@pytest.mark.parametrize(("Hq", "Hkv", "D"), [(16, 8, 128), (32, 8, 128), (6, 2, 64), (10, 2, 256)], ids=str)
def test_matches_float64(Hq: int, Hkv: int, D: int, causal: bool, algorithm: str) -> None:
    bench = Bench(Hq, Hkv, D, rows=300, requests=6, causal=causal, algorithm=algorithm)
    widths, lengths = [130, 1, 0, 33, 7], [2000, 17, 5, 1024, 0 if not causal else 7]
    offsets, pages = bench.plan(widths, lengths, seed=1)
    bench.check(*bench.attend(), offsets, pages, lengths)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_captured_graph_serves_later_plans(algorithm: str) -> None:
    """Plans for queued replays, with nothing that waits for the device in between."""
    bench = Bench(16, 8, 128, rows=192, requests=4, causal=False, algorithm=algorithm)
    bench.attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse2 = bench.attend()
    asked, results = [], []
    cohorts = [([64, 128], [900, 2500]), ([3], [40]), ([50, 50, 50, 42], [100, 0, 3000, 16]), ([192], [5000])]
    torch.cuda._sleep(10**8)  # the device is busy while all of this is queued
    for seed, (widths, lengths) in enumerate(cohorts):
        asked.append((*bench.plan(widths, lengths, seed), lengths))
        graph.replay()
        results.append((o.clone(), lse2.clone()))
    for (got, got_lse), (offsets, pages, lengths) in zip(results, asked, strict=True):
        bench.check(got, got_lse, offsets, pages, lengths)
