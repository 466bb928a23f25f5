"""What the experiments with `xgr bench` share: a deployment of their own, and a run against it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from xgr_runtime.catalog import Catalog
from xgr_runtime.cli.bench import facts, show
from xgr_runtime.cli.bench.judge import Judge
from xgr_runtime.cli.bench.measures import Point
from xgr_runtime.cli.bench.run import Run
from xgr_runtime.cli.bench.settings import LoadSettings, TrafficSettings
from xgr_runtime.cli.bench.target import Target
from xgr_runtime.cli.bench.traffic import UNLIMITED, calls
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

T = TypeVar("T")
CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 150)


def parser(about: str | None, width: int, prompt_tokens: int) -> argparse.ArgumentParser:
    """Flags of every experiment."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model-path", type=Path, required=True)
    made.add_argument("--catalog", type=Path, required=True)
    made.add_argument("--model-backend", default="auto", help="as `xgr serve --model-backend`")
    made.add_argument("--threads", type=int, default=0, help="as `xgr serve --threads`")
    made.add_argument("--beam-width", type=int, default=width)
    made.add_argument("--prompt-tokens", type=int, default=prompt_tokens)
    made.add_argument("--slo-ms", type=float, default=200.0)
    made.add_argument("--duration", type=float, default=30.0, help="seconds measured per point")
    made.add_argument("--warm-up", type=float, default=5.0, help="seconds of the same load before")
    made.add_argument("--start-rate", type=float, default=2.0, help="where the search begins")
    made.add_argument("--max-runs", type=int, default=10, help="points of one search")
    made.add_argument("--seed", type=int, default=0)
    return made


def load_of(args: argparse.Namespace) -> LoadSettings:
    return LoadSettings(duration=args.duration, warm_up=args.warm_up, slo=args.slo_ms / 1e3, seed=args.seed)


def measure(
    args: argparse.Namespace,
    catalog: Catalog,
    traffic: TrafficSettings,
    work: Callable[[Run], Awaitable[T]],
    **settings: Any,
) -> tuple[T, list[Point]]:
    """Starts a deployment with these settings, lets `work` measure it, and shows the points."""
    config = ServeConfig(
        model_path=str(args.model_path),
        model_backend=args.model_backend,
        catalog=str(args.catalog),
        threads=args.threads,
        port=0,
        log_level="WARNING",
        **settings,
    )
    load = load_of(args)

    def progress(point: Point) -> None:
        CONSOLE.print(show.line(point, load))

    async def run(url: str) -> tuple[T, list[Point]]:
        async with Target(url, None, traffic.timeout_ms) as target:
            stream = calls(catalog, traffic, (await target.info()).max_prompt_tokens or UNLIMITED)
            made = Run(target, Judge(catalog), stream, load, progress)
            await made.prime(traffic.known if traffic.kind == "sessions" else 0)
            result = await work(made)
            CONSOLE.print(show.table(made.points, load))
            show.remarks(CONSOLE, made.points, made.problems)
            return result, made.points

    with Deployment(config) as deployment:
        return asyncio.run(run(deployment.url))


def finish(args: argparse.Namespace, points: dict[str, list[Point]], figures: dict[str, Any]) -> int:
    """Prints the JSON line; the exit code: 1 for answers that were wrong."""
    whole = {
        "machine": facts.machine(),
        "versions": facts.versions(),
        "settings": facts.settings(vars(args)),
        **figures,
        "points": {name: facts.figures(some) for name, some in points.items()},
    }
    print(json.dumps(whole), flush=True)
    return int(any(point.wrong_sids for some in points.values() for point in some))
