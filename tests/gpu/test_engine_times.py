"""Engines without workers: a cohort's decode and where its time goes, prompts' forwards, both in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from engines import Engines, finish
from floors import decode, prefill, prefill_flop
from lab import Lab
from models import DEPTH, LAYERS, PACKED, TOY_LAYERS, make_to_measure
from profiles import read_cohorts, read_forward, traced
from results import Figures

from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.search import Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cuda import BucketEngine

pytestmark = pytest.mark.times
ROUNDS = 15
MODELS = ("0.6B", "1.7B", "4B")
COMPARED = "1.7B"  # measured in every backend's layers, the others in those of --layers
MakeSearches = Callable[[], list[Search]]


def layers_of(model: str) -> tuple[str, ...]:
    """Names of backends that a model is measured with; "" is the run's choice."""
    return {COMPARED: LAYERS, "toy": TOY_LAYERS}.get(model, ("",))


def in_layers(model: str, sizes: str, *values: Any) -> list[Any]:
    """model, layers and values, once for each backend; what is measured with one loads it once."""
    return [
        pytest.param(model, layers, *values, id="-".join(filter(None, (model, sizes, layers))))
        for layers in layers_of(model)
    ]


def beams(cases: Iterable[tuple[str, int, int, int]]) -> list[Any]:
    """model, layers, W, L, B."""
    return [case for model, W, L, B in cases for case in in_layers(model, f"W{W}-L{L}-B{B}", W, L, B)]


DECODE = beams((model, *sizes) for model in MODELS for sizes in ((256, 2048, 4), (256, 5000, 1)))
WIDE = beams([("1.7B", 512, 2048, 2)])


@pytest.mark.cases("model, layers, W, L, B", full=DECODE + WIDE, toy=beams([("toy", 2, 20, 2)]))
def test_decode(
    lab: Lab, figures: Figures, subtests: pytest.Subtests, model: str, layers: str, W: int, L: int, B: int
) -> None:
    """One cohort of B requests of W beams over L tokens, all levels: seconds from launch to answer."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, B * L + 64, layers)
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
        figures.goal("a decode over its floor", statistics.median(seconds) / floor, 1.3)
    with subtests.test("queued"):
        figures.time("decode, one queued behind another", _queued(lab, engine, searches), floor, rows=W * B)
    with subtests.test("host"):
        figures.time("host work of a launch", _host_seconds(lab, engine, searches))
    figures.note("memory", MiB=lab.device.reserved_bytes() / 2**20)
    with subtests.test("profile"):
        cohorts = [searches() for _ in range(lab.rounds(2))]
        events = traced(lab, f"decode-{model}-W{W}-L{L}-B{B}-{layers}", lambda: _launch(engine, cohorts))
        while engine.busy:
            engine.collect()
        read_cohorts(figures, events, len(cohorts), floor)


def _launch(engine: CohortEngine, cohorts: list[list[Search]]) -> None:
    """One queued behind the other."""
    for searches in cohorts:
        engine.launch(searches)


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


def prompts_of(model: str, prompts: dict[str, list[int]]) -> list[Any]:
    """model, layers, counts."""
    return [case for name, counts in prompts.items() for case in in_layers(model, name, counts)]


@pytest.mark.cases(
    "model, layers, counts",
    full=[case for model in MODELS for case in prompts_of(model, PACKED)],
    toy=prompts_of("toy", {"packed-20-and-7": [20, 7]}),
)
def test_prefill(lab: Lab, figures: Figures, model: str, layers: str, counts: list[int]) -> None:
    """A forward over whole prompts: seconds until their hidden states are on the host."""
    made = make_to_measure(lab, model)
    engines = Engines(lab, made, sum(counts) + 16 * len(counts) + 64, layers)
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
    name = f"prefill-{model}-{len(counts)}x{counts[0]}-{layers}"
    read_forward(figures, traced(lab, name, lambda: engine.run(parts, lambda layer: None)), floor)


def sizes_of(cases: Iterable[tuple[str, int, int, int]]) -> list[Any]:
    """model, W, L, B, in the run's choice of layers."""
    return [pytest.param(*case, id="{}-W{}-L{}-B{}".format(*case)) for case in cases]


NVIDIA = [("1.7B", 256, 1000, 8), ("1.7B", 256, 5000, 8)]
NVIDIA_SECONDS, NVIDIA_RATE = 0.0423, 30.0  # its own for one at a time; requests/s of many at 5,000 tokens


@pytest.mark.cases(
    "model, W, L, B",
    full=sizes_of([*NVIDIA, *((model, 256, 5000, 4) for model in MODELS)]),
    toy=sizes_of([("toy", 2, 20, 2)]),
)
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
        if (model, W, L, B) in NVIDIA and count == 1:
            figures.goal("seconds of one request", seconds, NVIDIA_SECONDS)
        if (model, W, L, B) == NVIDIA[-1] and count == B:
            figures.goal("requests/s of one process", count / seconds, NVIDIA_RATE, least=True)


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
