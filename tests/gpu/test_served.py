"""Whole requests through router and both workers: are they right, and how many in a second."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lab import Lab
from models import Made, make_to_measure
from results import Figures
from shared_templates import deployment_of
from yardstick import Yardstick, small, widths_of

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer

LAYOUTS: dict[str, dict[str, Any]] = {
    "colocated": {"layout": "colocated"},
    "colocated-no-turns": {"layout": "colocated", "sharing": "none"},
    "split": {"layout": "split"},
    "split-frames": {"layout": "split", "kv_transfer": "frames"},
}
KV_BYTES = 20 << 30
WINDOW = 10.0  # seconds
RESULTS = 50  # items of an answer at most


@pytest.mark.cases("layout", full=list(LAYOUTS), toy=["colocated"])
def test_answers(lab: Lab, subtests: pytest.Subtests, layout: str) -> None:
    """Several requests at once, each against exact scores of every SID."""
    made = small(lab)
    yardstick = Yardstick(lab, made)
    prompts = _prompts(lab, made, 6, 40) + _prompts(lab, made, 2, 1)
    widths = widths_of(lab, len(prompts))
    with (
        _deployment(lab, _config(lab, made, layout, max(widths), 1 << 30)) as deployment,
        XgrClient(deployment.url) as client,
        ThreadPoolExecutor(4) as callers,
    ):
        asked = [
            callers.submit(client.generate, input_ids=prompt, beam_width=width)
            for prompt, width in zip(prompts, widths, strict=True)
        ]
        for i, (prompt, width, answer) in enumerate(zip(prompts, widths, asked, strict=True)):
            with subtests.test(f"request {i}, L={len(prompt)}-W={width}"):
                best = answer.result().meta_info.beam_results
                ours = [(tuple(r.output_ids), r.meta_info.cumulative_logprob) for r in best]
                yardstick.compare(prompt, width, ours)


def loads(
    models: Iterable[str], L: int, widths: list[int], callers: list[int], layouts: Iterable[str]
) -> list[Any]:
    """model, L, widths, callers, layout."""
    return [
        pytest.param(
            model, L, widths, callers, layout, id=f"{model}-W{'+'.join(map(str, widths))}-L{L}-{layout}"
        )
        for model in models
        for layout in layouts
    ]


FLASHREC = {50: 28.0, 128: 20.0, 512: 8.0}  # its own requests/s at each width, L = 2,465
FULL = [
    *loads(["0.6B"], 5000, [256], [4, 8], ["colocated"]),
    *loads(["1.7B"], 5000, [256], [4, 8], LAYOUTS),
    *loads(["1.7B"], 2465, list(FLASHREC), [8], ["colocated"]),
    *loads(["4B"], 5000, [256], [4, 8], ["colocated"]),
]
TOY = loads(["toy"], 20, [5], [2], ["colocated"])


@pytest.mark.times
@pytest.mark.timeout(900)
@pytest.mark.cases("model, L, widths, callers, layout", full=FULL, toy=TOY)
def test_load(
    lab: Lab,
    figures: Figures,
    subtests: pytest.Subtests,
    model: str,
    L: int,
    widths: list[int],
    callers: list[int],
    layout: str,
) -> None:
    """Sustained load by so many callers at a time, each with prompts of its own, for some seconds."""
    made = make_to_measure(lab, model)
    started = time.perf_counter()
    kv_bytes = (64 << 20) if lab.toy else KV_BYTES
    with (
        _deployment(lab, _config(lab, made, layout, max(widths), kv_bytes)) as deployment,
        XgrClient(deployment.url) as client,
    ):
        figures.time("start", time.perf_counter() - started)
        for width in widths:
            with subtests.test(f"W={width}, alone"):
                _first_requests(figures, lab, made, client, L, width)
            for count in callers:
                with subtests.test(f"W={width}, {count} callers"):
                    found = _sustained(lab, made, client, L, width, count)
                    figures.time(f"W={width}, {count} callers", layers=lab.layers, **found)
                    if count == max(callers) and (wanted := _wanted(model, L, width)):
                        what = f"requests/s of {count} callers, W={width}"
                        figures.goal(what, found["requests_per_s"], wanted, least=True)


def _wanted(model: str, L: int, width: int) -> float:
    """Requests/s that are a goal; 0 is none."""
    if (model, L) == ("1.7B", 2465):
        return 2 * FLASHREC[width]
    return 30.0 if (model, L) == ("1.7B", 5000) else 0.0


def _config(lab: Lab, made: Made, layout: str, width: int, kv_bytes: int) -> ServeConfig:
    settings = LAYOUTS[layout] if lab.cuda else {}
    return ServeConfig(
        model_path=str(made.folder),
        catalog=str(made.catalog_path),
        model_backend=lab.layers,
        device="cuda" if lab.cuda else "cpu",
        dtype="bfloat16" if lab.cuda else "float32",
        port=0,
        threads=0 if lab.cuda else 1,
        kv_bytes=kv_bytes,
        max_beam_width=max(width, 8),
        max_rows=max(1024, 2 * width) if lab.cuda else 2 * width,
        batch_tokens=8192 if lab.cuda else 512,
        timeout_ms=60_000,
        start_timeout=420.0,  # compilers may run, if nothing did before
        log_level="WARNING",
        **settings,
    )


def _deployment(lab: Lab, config: ServeConfig) -> Deployment:
    """As a user starts it; toys share what their processes import."""
    return deployment_of(config) if lab.toy else Deployment(config)


def _prompts(lab: Lab, made: Made, count: int, tokens: int) -> list[list[int]]:
    """Random token ids: no two prompts share anything that a cache could hold."""
    ids: list[list[int]] = lab.random.integers(2, made.shape.vocab, (count, tokens)).tolist()
    return ids


def _ask(client: XgrClient, prompt: list[int], width: int) -> tuple[float, Answer]:
    started = time.perf_counter()
    answer = client.generate(input_ids=prompt, beam_width=width, n=min(width, RESULTS))
    return time.perf_counter() - started, answer


def _first_requests(figures: Figures, lab: Lab, made: Made, client: XgrClient, L: int, width: int) -> None:
    """One at a time: the first is not to be slower than the rest, and where the time goes."""
    prompts = _prompts(lab, made, lab.rounds(20), L)
    asked = [_ask(client, prompt, width) for prompt in prompts]
    times = [seconds for seconds, _ in asked]
    parts = {
        name: statistics.median(getattr(answer.meta_info.timing, name) for _, answer in asked)
        for name in ("queue", "prefill", "transfer", "decode")
    }
    usual = statistics.median(times)
    figures.time(f"W={width}, alone", usual, first=times[0], **parts)
    if not lab.toy:
        figures.goal(f"the first request of width {width} over the median", times[0] / usual, 1.5)


def _sustained(lab: Lab, made: Made, client: XgrClient, L: int, width: int, callers: int) -> dict[str, Any]:
    """Latencies and rate of the requests that ended within the window, behind a warm-up of a few."""
    prompts = _prompts(lab, made, 8 * callers, L)
    warm, over = threading.Barrier(callers + 1), threading.Event()
    latencies: list[float] = []

    def call(number: int) -> None:
        mine = prompts[number::callers]
        try:
            _ask(client, mine[0], width)
        except BaseException:
            warm.abort()
            raise
        warm.wait(120)
        sent = 1
        while not over.is_set():
            taken, _ = _ask(client, mine[sent % len(mine)], width)
            sent += 1
            if not over.is_set():
                latencies.append(taken)

    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(call, number) for number in range(callers)]
        started = time.perf_counter()
        with contextlib.suppress(threading.BrokenBarrierError):  # the caller that broke it says why
            warm.wait(120)
            started = time.perf_counter()
            time.sleep(2.0 if lab.toy else WINDOW)
        over.set()
        window = time.perf_counter() - started
        done = list(latencies)
        for ended in calls:
            ended.result()
    ordered = sorted(done)
    return {
        "seconds": statistics.median(ordered),
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "requests_per_s": len(done) / window,
        "requests": len(done),
    }
