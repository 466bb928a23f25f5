"""Engines without workers: a cohort's decode and where its time goes, prompts' forwards, both in turns."""

from __future__ import annotations

import gzip
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cohort_trace
import numpy as np
import pytest
import torch
from engines import Engines, finish
from floors import decode, prefill, prefill_flop
from lab import Lab
from models import DEPTH, PACKED, make_to_measure
from results import Figures

from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.search import Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cuda import BucketEngine
from xgr_kernels.beam_select import cuda_kernels

pytestmark = pytest.mark.times
ROUNDS = 15
MODELS = ("0.6B", "1.7B", "4B")
MakeSearches = Callable[[], list[Search]]


def beams(cases: Iterable[tuple[str, int, int, int]]) -> list[Any]:
    """model, W, L, B."""
    return [pytest.param(model, W, L, B, id=f"{model}-W{W}-L{L}-B{B}") for model, W, L, B in cases]


TOY_BEAMS = beams([("toy", 3, 20, 2)])
DECODE = beams((model, *sizes) for model in MODELS for sizes in ((256, 2048, 4), (256, 5000, 1)))
WIDE = beams([("1.7B", 512, 2048, 2)])


@pytest.mark.cases("model, W, L, B", full=DECODE + WIDE, toy=TOY_BEAMS)
def test_decode(
    lab: Lab, figures: Figures, subtests: pytest.Subtests, model: str, W: int, L: int, B: int
) -> None:
    """One cohort of B requests of W beams over L tokens, all levels: seconds from launch to answer."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, B * L + 64)
    engine = engines.decode(W * B if lab.toy else 1024, W)
    parts = [engines.part(engines.prompt(L)) for _ in range(B)]
    rows = min(W, len(made.trie.tokens[0])), min(W, len(made.trie.tokens[1]))
    floor = decode(made.shape, [max(rows)] * B, L, DEPTH, lab.rates)

    def searches() -> list[Search]:
        random = lab.random.standard_normal((B, engines.model.identity.hidden)).astype(np.float32)
        return [engines.search(part, hidden, W, W) for part, hidden in zip(parts, random, strict=True)]

    seconds = [_timed_cohort(engine, searches()) for _ in range(lab.rounds(ROUNDS + 3))][-ROUNDS:]
    figures.time("decode, launch to answer", statistics.median(seconds), floor, rows=W * B)
    if (model, W * B, L) == ("1.7B", 1024, 2048):
        figures.goal("a decode over its floor", statistics.median(seconds) / floor, 1.4)
    with subtests.test("queued"):
        figures.time("decode, one queued behind another", _queued(lab, engine, searches), floor, rows=W * B)
    with subtests.test("host"):
        figures.time("host work of a launch", _host_seconds(lab, engine, searches))
    figures.note("memory", MiB=lab.device.reserved_bytes() / 2**20)
    with subtests.test("profile"):
        _profile(figures, lab, f"decode-{model}-W{W}-L{L}-B{B}", engine, [searches(), searches()], floor)


def _timed_cohort(engine: CohortEngine, searches: list[Search]) -> float:
    started = time.perf_counter()
    over = finish(engine, searches)
    assert len(over) == len(searches) and not any(search.invalid for search in over)
    return time.perf_counter() - started


def _queued(lab: Lab, engine: CohortEngine, searches: MakeSearches) -> float:
    """Seconds per cohort when the next is always planned while one runs."""
    waiting = [searches() for _ in range(lab.rounds(2 * ROUNDS))]
    count = len(waiting)
    lab.settle()
    started = time.perf_counter()
    while waiting or engine.busy:
        if waiting and engine.ready:
            engine.launch(waiting.pop())
        engine.collect()
    return (time.perf_counter() - started) / count


def _host_seconds(lab: Lab, engine: CohortEngine, searches: MakeSearches) -> float:
    """How long the host plans and queues a cohort on an idle device."""
    times = []
    for _ in range(lab.rounds(ROUNDS)):
        batch = searches()
        lab.settle()
        started = time.perf_counter()
        engine.launch(batch)
        times.append(time.perf_counter() - started)
        while engine.busy:
            engine.collect()
    return statistics.median(times)


def _profile(
    figures: Figures, lab: Lab, name: str, engine: CohortEngine, cohorts: list[list[Search]], floor: float
) -> None:
    """Traces cohorts, one queued behind the other, into the results."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if lab.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    lab.settle()
    with torch.profiler.profile(activities=activities) as profile:
        for searches in cohorts:
            engine.launch(searches)
        lab.settle()
    while engine.busy:
        engine.collect()
    path = lab.scratch / "cohort.json"
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    with path.open("rb") as plain, gzip.open(lab.out / f"{name}.json.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    read_profile(figures, events, len(cohorts), floor)


def read_profile(figures: Figures, events: cohort_trace.Events, cohorts: int, floor: float) -> None:
    """Who waited, and what took the device's time; a CPU's profile says nothing of either."""
    hidden, copies = cohort_trace.hidden_copies(events)
    figures.note("copies", us=1e6 * copies, **{"us beside a kernel": 1e6 * hidden})
    seconds = cohort_trace.shares(events, _selection_kernels())
    total = sum(seconds.values())
    shares = {f"{purpose} %": 100 * part / total for purpose, part in sorted(seconds.items())}
    launches = cohort_trace.launches(events) / cohorts
    figures.note("launches of a cohort", count=launches, **shares)
    longest = {name.replace("|", "/"): seconds for name, seconds in cohort_trace.longest(events)}
    figures.note("longest, in seconds", **longest)
    if total:
        each = cohort_trace.span(events) / cohorts
        figures.time("device time of a cohort", each, floor, busy=total / cohorts)
        ours = sum(seconds.get(purpose, 0.0) for purpose in ("tail", "select", "read-back"))
        figures.goal("share of tail, merge, selection and read-back", ours / total, 0.15)
    found = cohort_trace.waits(events)
    assert not found, f"something waits inside a cohort, whose levels are queued at once: {found[:5]}"


def _selection_kernels() -> list[str]:
    """Names of the compiled kernels of selection, as a profile has them."""
    return [name for name, value in vars(cuda_kernels).items() if hasattr(value, "run") and name[0] != "_"]


def prompts_of(models: Iterable[str], prompts: dict[str, list[int]]) -> list[Any]:
    """model, counts."""
    return [
        pytest.param(model, counts, id=f"{model}-{name}")
        for model in models
        for name, counts in prompts.items()
    ]


@pytest.mark.cases(
    "model, counts", full=prompts_of(MODELS, PACKED), toy=prompts_of(["toy"], {"packed-20-and-7": [20, 7]})
)
def test_prefill(lab: Lab, figures: Figures, model: str, counts: list[int]) -> None:
    """A forward over whole prompts: seconds until their hidden states are on the host."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, sum(counts) + 16 * len(counts) + 64)
    engine = engines.prefill(sum(counts))
    parts = [engines.part(engines.prompt(count)) for count in counts]
    times = []
    for _ in range(lab.rounds(ROUNDS + 3)):
        started = time.perf_counter()
        hidden = engine.run(parts, lambda layer: None)
        times.append(time.perf_counter() - started)
    assert np.isfinite(hidden).all()
    floor = prefill(made.shape, counts, lab.rates)
    seconds = statistics.median(times[-ROUNDS:])
    share = prefill_flop(made.shape, counts) / seconds / lab.rates["matrix"]
    figures.time("prefill", seconds, floor, tokens=sum(counts), share_of_matrix_rate=share)
    if sum(counts) == 8192:
        figures.goal("packed prefill of 8k tokens over the matrix rate", share, 0.6, least=True)
    if counts == [1024]:
        figures.goal("one prompt of 1k over its floor", seconds / floor, 1.5)


@pytest.mark.cases("model, W, L, B", full=beams((model, 256, 5000, 4) for model in MODELS), toy=TOY_BEAMS)
def test_in_turns(lab: Lab, figures: Figures, model: str, W: int, L: int, B: int) -> None:
    """One process that prefills B prompts and then decodes them: what two processes compete with."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, B * (L + 16) + 64)
    prompts = engines.prefill(min(8192, B * L) if not lab.toy else B * L)
    cohorts = engines.decode(W * B, W)
    parts = [engines.part(engines.prompt(L)) for _ in range(B)]
    for count in sorted({1, B}):
        times = [_turn(engines, prompts, cohorts, parts[:count], W) for _ in range(lab.rounds(ROUNDS + 2))][
            -ROUNDS:
        ]
        seconds = statistics.median(times)
        floor = prefill(made.shape, [L] * count, lab.rates)
        floor += decode(made.shape, [W] * count, L, DEPTH, lab.rates)
        figures.time(f"{count} at a time", seconds, floor, requests_per_s=count / seconds)


def _turn(
    engines: Engines, prompts: BucketEngine, cohorts: CohortEngine, parts: Sequence[Part], W: int
) -> float:
    """Seconds of all prompts' forwards, as many to each as its largest bucket holds, and of one decode."""
    started = time.perf_counter()
    each = max(1, prompts.buckets[-1] // len(parts[0].tokens))
    batches = [parts[i : i + each] for i in range(0, len(parts), each)]
    hidden = np.concatenate([prompts.run(batch, lambda layer: None) for batch in batches])
    finish(cohorts, [engines.search(p, h, W, W) for p, h in zip(parts, hidden, strict=True)])
    return time.perf_counter() - started
