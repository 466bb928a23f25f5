"""Times of attention: ours on either of FlashInfer's kernels, tail and merge, and what others would do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any

import pytest
import rivals
import torch
from exact import attention
from floors import Heads, causal_attention, shared_attention, tail_attention
from inputs import Prompts, make_attention, make_prompts
from lab import Lab, error, near
from models import PACKED
from results import Figures
from torch import Tensor

from xgr_kernels.attention.paged import AttentionSizes, choose_algorithm, device_facts
from xgr_kernels.attention.tail import cuda as tail_cuda

SAMPLE = 8  # rows of a request that are held against float64
LIMIT = 8e-3
LIMIT_REASON = "bfloat16: roundings of the weights, of one or two partial results and of the output"
DIM = 128


pytestmark = pytest.mark.times
HEADS, TOY_HEADS = [(16, 8), (32, 8)], [(16, 8)]


def shared_cases(heads: list[tuple[int, int]], grid: Iterable[tuple[int, int, int]]) -> list[Any]:
    """q_heads, kv_heads, W, L, B."""
    return [
        pytest.param(q, kv, W, L, B, id=f"{q}/{kv}-W{W}-L{L}-B{B}")
        for (q, kv), (W, L, B) in product(heads, grid)
    ]


GRID = product((128, 256, 512), (1024, 2048, 4096), (1, 4, 16))


@pytest.mark.cases(
    "q_heads, kv_heads, W, L, B", full=shared_cases(HEADS, GRID), toy=shared_cases(TOY_HEADS, [(5, 40, 2)])
)
def test_shared_attention(
    lab: Lab, figures: Figures, subtests: pytest.Subtests, q_heads: int, kv_heads: int, W: int, L: int, B: int
) -> None:
    """B requests of W beams over L tokens: FA2, FA3, tail and merge, and the rivals."""
    heads, rows = Heads(q_heads, kv_heads, DIM), [W] * B
    sets = lab.sets_of(B * (L * heads.token + W * 2 * heads.row))
    prompts = make_prompts(lab, [L] * B, kv_heads, DIM, sets, torch.bfloat16)
    q = lab.randn(sets, B * W, q_heads, DIM)
    floor = lab.floor(shared_attention(heads, rows, [L] * B))
    for algorithm in lab.algorithms:
        with subtests.test(algorithm):
            made = make_attention(lab, prompts, q_heads, rows, False, algorithm)
            _time(figures, lab, f"shared {algorithm}", floor, made.attend, q, prompts, rows)
            figures.note(f"plan {algorithm}", host_seconds=_plan_seconds(lab, made.plan, rows, prompts))
    with subtests.test("the faster"):
        best, faster = min(figures.times)
        sizes = AttentionSizes(q_heads, kv_heads, DIM, 16, torch.bfloat16, lab.where, DIM**-0.5)
        figures.note(f"{faster} is faster", **{"the rule says": _rule(sizes, rows)})
        share = shared_attention(heads, rows, [L] * B).flop / best / lab.rates["matrix"]
        if B * W == 1024:
            figures.goal("shared attention of 1,024 rows over the matrix rate", share, 0.6, least=True)
    with subtests.test("tail"):
        _tail(figures, lab, heads, B * W, sets)
    for name, make in rivals.ATTENTION.items():
        with subtests.test(name), rivals.may_fail(figures, name):
            rival = make(lab, prompts, q_heads, rows)
            _time_rival(figures, lab, name, floor, rival, q, prompts, rows)


PROMPTS = {name: (counts, counts) for name, counts in PACKED.items()} | {
    "chunk-1k-behind-4k": ([1024], [5120])
}
TOY_PROMPTS = {"packed-2x20": ([20, 20], [20, 20])}


def causal_cases(heads: list[tuple[int, int]], prompts: dict[str, tuple[list[int], list[int]]]) -> list[Any]:
    """q_heads, kv_heads, counts, lengths."""
    return [
        pytest.param(q, kv, counts, lengths, id=f"{q}/{kv}-{name}")
        for (q, kv), (name, (counts, lengths)) in product(heads, prompts.items())
    ]


@pytest.mark.cases(
    "q_heads, kv_heads, counts, lengths",
    full=causal_cases(HEADS, PROMPTS),
    toy=causal_cases(TOY_HEADS, TOY_PROMPTS),
)
def test_prefill_attention(
    lab: Lab,
    figures: Figures,
    subtests: pytest.Subtests,
    q_heads: int,
    kv_heads: int,
    counts: list[int],
    lengths: list[int],
) -> None:
    """Packed prompts, or chunks behind what is cached: the last counts[b] of lengths[b] tokens."""
    heads = Heads(q_heads, kv_heads, DIM)
    sets = lab.sets_of(sum(lengths) * heads.token + sum(counts) * 2 * heads.row)
    prompts = make_prompts(lab, lengths, kv_heads, DIM, sets, torch.bfloat16)
    q = lab.randn(sets, sum(counts), q_heads, DIM)
    floor = lab.floor(causal_attention(heads, counts, lengths))
    for algorithm in lab.algorithms:
        with subtests.test(algorithm):
            made = make_attention(lab, prompts, q_heads, counts, True, algorithm)
            _time(figures, lab, f"causal {algorithm}", floor, made.attend, q, prompts, counts, True)


def _time(
    figures: Figures,
    lab: Lab,
    what: str,
    floor: float,
    attend: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]],
    q: Tensor,
    prompts: Prompts,
    rows: list[int],
    causal: bool = False,
) -> None:
    """Checks a sample of rows of the first set, then times all sets in turn."""
    o = attend(q[0], prompts.k[0], prompts.v[0], DIM**-0.5)[0]
    near(_sample_error(lab, q[0], o, prompts, rows, causal), LIMIT, LIMIT_REASON)
    calls = [partial(attend, q[s], prompts.k[s], prompts.v[s], DIM**-0.5) for s in range(len(q))]
    timed = lab.measure(calls)
    figures.time(what, timed.seconds, floor, **timed.facts)


def _sample_error(lab: Lab, q: Tensor, o: Tensor, prompts: Prompts, rows: list[int], causal: bool) -> float:
    """Of a few rows of the first and the last prompt."""
    got, want = [], []
    for b in {0, len(rows) - 1}:
        picked = torch.from_numpy(lab.random.integers(0, rows[b], SAMPLE)).to(lab.where)
        seen = prompts.lengths[b] - rows[b] + picked + 1 if causal else None
        mine = picked + sum(rows[:b])
        want.append(attention(q[mine], *prompts.tokens(b), DIM**-0.5, seen)[0])
        got.append(o[mine])
    return error(torch.cat(got), torch.cat(want))


def _plan_seconds(lab: Lab, plan: Callable[..., None], rows: list[int], prompts: Prompts) -> float:
    """Host seconds of a plan behind which nothing waits."""
    offsets = [sum(rows[:b]) for b in range(len(rows) + 1)]
    times = []
    for _ in range(lab.rounds(20)):
        lab.settle()
        started = time.perf_counter()
        plan(offsets, prompts.pages, prompts.lengths)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _rule(sizes: AttentionSizes, rows: list[int]) -> str:
    """What the planner would take here."""
    return choose_algorithm(sizes, [(count, 1) for count in rows], device_facts(sizes.device))


def _tail(figures: Figures, lab: Lab, heads: Heads, R: int, sets: int) -> None:
    """The second forward of depth 3, where one tail token is read, and the first, which stores it."""
    q, o = lab.randn(sets, R, heads.q, DIM), lab.randn(sets, R, heads.q, DIM)
    k, v = lab.randn(sets, R, heads.kv, DIM), lab.randn(sets, R, heads.kv, DIM)
    tail_k, tail_v = (lab.randn(sets, 1, R, heads.kv, DIM) for _ in range(2))
    lse2 = lab.randn(R, heads.q, dtype=torch.float32)
    anc = torch.from_numpy(lab.random.integers(0, R, (R, 1))).to(lab.where, torch.int32)
    rows = torch.arange(R, device=lab.where)
    for tail_len in (0, 1):
        lengths = torch.full((R,), tail_len, device=lab.where)
        calls = [
            partial(tail_cuda.attend, *per_set, anc, rows, lengths, o[s], lse2, DIM**-0.5)
            for s, per_set in enumerate(zip(q, k, v, tail_k, tail_v, strict=True))
        ]
        floor = lab.floor(tail_attention(heads, R, tail_len, stored=tail_len == 0))
        timed = lab.measure(calls)
        figures.time(f"tail and merge, {tail_len} in the tail", timed.seconds, floor, **timed.facts)


def _time_rival(
    figures: Figures,
    lab: Lab,
    name: str,
    floor: float,
    rival: rivals.AttentionRival,
    q: Tensor,
    prompts: Prompts,
    rows: list[int],
) -> None:
    """The same check and the same clock as ours, of a few rows and what each sees for itself."""
    got, want = rival.attend(q[0], prompts.k[0], prompts.v[0]), []
    picked = torch.from_numpy(lab.random.integers(0, rows[0], SAMPLE)).to(lab.where)
    for r in picked.tolist():
        seen = zip(prompts.tokens(0), rival.own(prompts.k[0], prompts.v[0], r), strict=True)
        k, v = (torch.cat([shared, own.double()]) for shared, own in seen)
        want.append(attention(q[0][r : r + 1], k, v, DIM**-0.5)[0])
    near(error(got[picked], torch.cat(want)), LIMIT, LIMIT_REASON)
    timed = lab.measure([partial(rival.attend, q[s], prompts.k[s], prompts.v[s]) for s in range(len(q))])
    figures.time(name, timed.seconds, floor, **timed.facts)
