"""The flow of `xgr bench`: check, measure point after point, report.

Exit code 1 says that answers were wrong or that there were none, 130 that the run was interrupted.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.bench.flags import add_flags, load_settings, traffic_settings
from xgr_runtime.cli.bench.settings import SearchSettings, parse_numbers
from xgr_runtime.config import check_secret
from xgr_runtime.config.variables import variable
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import check_writable

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.bench.judge import Judge
    from xgr_runtime.cli.bench.report import Report
    from xgr_runtime.cli.bench.run import Run
    from xgr_runtime.cli.bench.settings import TrafficSettings
    from xgr_runtime.cli.bench.target import Target
    from xgr_runtime.prompts import Prompts

LEAST_REQUESTS = 5  # of a point of --rate auto


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `bench` to the command line; the parsed arguments carry `bench` as `func`."""
    about = "put a running deployment under load and measure it"
    parser = subparsers.add_parser(
        "bench", help=about, description=f"{about}; a key is read from XGR_API_KEY", allow_abbrev=False
    )
    add_flags(parser)
    parser.set_defaults(func=bench)


def bench(args: argparse.Namespace) -> int:
    """The whole run. Ctrl-C and SIGTERM end it early, with a report of what there is."""
    from xgr_runtime.catalog import load_catalog
    from xgr_runtime.checkpoint import described
    from xgr_runtime.cli.bench.target import need_extra

    check_load(args)
    key_of_environment()
    if args.plot:
        check_writable(args.plot, "--plot")
    if args.calibrate:
        check_writable(args.calibrate, "--calibrate")
    for package in ("aiohttp", *(["matplotlib"] if args.plot else [])):
        need_extra(package)
    with described(args.model_path, args.base_model_path) if args.model_path else nullcontext() as files:
        catalog = load_catalog(args.catalog, files)
        prompts = prompts_of(catalog, files)
    return _bench(args, catalog, prompts, traffic_settings(args))


def prompts_of(catalog: Catalog, checkpoint: Path | None) -> Prompts:
    """What renders the catalog's templates: those of text need the checkpoint. Raises ModelError."""
    from xgr_runtime.catalog import PromptTemplate
    from xgr_runtime.prompts import Prompts
    from xgr_runtime.tokenizer import read_tokenizer

    if checkpoint is None or isinstance(catalog.templates.default, PromptTemplate):
        return Prompts.read(None, None)
    return Prompts.read(read_tokenizer(checkpoint), checkpoint)


def key_of_environment() -> str | None:
    """The deployment's key. Raises ConfigError for one that no header carries."""
    key = os.environ.get(variable("api_key")) or None
    if key:
        check_secret(key, variable("api_key"))
    return key


def check_load(args: argparse.Namespace) -> None:
    """Raises ConfigError for rates and numbers in flight that say nothing."""
    if [args.rate, args.in_flight, args.calibrate].count(None) != 2:
        raise ConfigError(
            "say how much: one of --rate N[,N...], --rate auto, --in-flight N[,N...], and --calibrate FILE"
        )
    if args.rate not in (None, "auto"):
        parse_numbers(args.rate, "--rate")
    if args.in_flight is not None:
        parse_numbers(args.in_flight, "--in-flight")


def _bench(args: argparse.Namespace, catalog: Catalog, prompts: Prompts, traffic: TrafficSettings) -> int:
    import uvloop

    from xgr_runtime.cli.bench.judge import Judge
    from xgr_runtime.cli.bench.reference import AnswerFile, read_reference
    from xgr_runtime.cli.bench.report import Report

    reference = read_reference(args.reference, catalog, prompts) if args.reference else None
    answers = AnswerFile(args.save_answers) if args.save_answers else None
    report = Report(args, load_settings(args))
    # The runner turns Ctrl-C into a cancelled run; SIGTERM does the same.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            judge = Judge(catalog, reference, answers)
            runner.run(_measure(args, catalog, prompts, traffic, judge, report))
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        if answers:
            answers.close()
    return report.write()


async def _measure(
    args: argparse.Namespace,
    catalog: Catalog,
    prompts: Prompts,
    traffic: TrafficSettings,
    judge: Judge,
    report: Report,
) -> None:
    from xgr_runtime.cli.bench.calibrate import calibrate
    from xgr_runtime.cli.bench.run import Run
    from xgr_runtime.cli.bench.target import Target
    from xgr_runtime.cli.bench.traffic import UNLIMITED, calls

    async with Target(args.url, key_of_environment(), args.timeout_ms) as target:
        report.server = await check_server(target, catalog, max(traffic.widths.widths))
        most_tokens = (await target.info()).max_prompt_tokens or UNLIMITED
        if args.calibrate:
            report.run = await calibrate(args.calibrate, target, catalog, traffic, judge, report)
            return
        stream = calls(catalog, traffic, most_tokens, prompts)
        report.run = Run(target, judge, stream, report.load, report.progress)
        await report.run.prime(traffic.known if traffic.kind == "sessions" else 0)
        await _all_points(args, report.run, report)


async def check_server(target: Target, catalog: Catalog, widest: int) -> dict[str, str]:
    """What the deployment says of itself. Raises ConfigError when it would refuse or look wrong."""
    info = await target.info()
    model = await target.check_catalog(catalog)
    if not info.ready:
        raise ConfigError(f"{target.url} is not ready: wait for its workers")
    if widest > info.max_beam_width:
        raise ConfigError(f"--beam-width is {widest}, the deployment takes at most {info.max_beam_width}")
    return {"model": model.served_model_name, "version": info.version, "catalog": catalog.version}


async def _all_points(args: argparse.Namespace, run: Run, report: Report) -> None:
    if args.in_flight is not None:
        for in_flight in parse_numbers(args.in_flight, "--in-flight"):
            await run.closed(max(1, round(in_flight)))
    elif args.rate == "auto":
        settings = SearchSettings(args.start_rate, LEAST_REQUESTS / args.duration, args.max_runs)
        report.max_rate = await run.highest_rate(settings)
    else:
        for rate in parse_numbers(args.rate, "--rate"):
            await run.open(rate)
