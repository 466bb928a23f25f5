"""The flags of `xgr bench`, and the settings that they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from xgr_runtime.cli.bench.settings import (
    LoadSettings,
    SearchSettings,
    TrafficKind,
    TrafficSettings,
    Widths,
)
from xgr_runtime.cli.numbers import above_0, count, from_0, seed, share
from xgr_runtime.errors import ConfigError

TRAFFIC, LOAD, SEARCH = TrafficSettings(), LoadSettings(), SearchSettings()


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All of them, in the groups of `--help`."""
    _add_deployment(parser.add_argument_group("deployment"))
    _add_load(parser.add_argument_group("load"))
    _add_traffic(parser.add_argument_group("requests"))
    _add_output(parser.add_argument_group("comparison and output"))


def _add_deployment(group: argparse._ArgumentGroup) -> None:
    _add(group, "--url", "where it listens", default="http://127.0.0.1:30000")
    _add(group, "--catalog", "its catalog, file or source", type=Path, required=True)
    _add(group, "--model-path", "its checkpoint folder; a built catalog file can do without", type=Path)
    _add(group, "--base-model-path", "what an adapter there was trained on", default="")


def _add_load(group: argparse._ArgumentGroup) -> None:
    text = "requests per second, a point each, arriving at random; auto: the highest that keeps --slo-ms"
    _add(group, "--rate", text, "--rates", metavar="N[,N...]|auto")
    _add(group, "--in-flight", "instead: so many at a time, a point each", metavar="N[,N...]")
    text = (
        "instead: ask one and then four at a time, of many sizes up to --prompt-tokens and --beam-width, and "
        "write what launches cost to FILE, for `xgr plan`; --duration is that of each"
    )
    _add(group, "--calibrate", text, type=Path, metavar="FILE")
    text = "shape of the gamma distributed gaps: 1 is a Poisson process, less is bursts"
    _add(group, "--burstiness", text, type=above_0, default=LOAD.burstiness)
    _add(group, "--duration", "seconds that are measured per point", type=above_0, default=LOAD.duration)
    _add(group, "--warm-up", "seconds of the same load before them", type=from_0, default=LOAD.warm_up)
    _add(group, "--slo-ms", "what p99 has to stay within", type=above_0, default=1e3 * LOAD.slo)
    text = "share of the requests that has to be answered"
    _add(group, "--answered", text, type=share, default=LOAD.answered)
    _add(group, "--start-rate", "where --rate auto begins", type=above_0, default=SEARCH.start)
    _add(group, "--max-runs", "points that --rate auto may take", type=count, default=SEARCH.most_runs)
    _add(group, "--seed", "of arrivals and requests", type=seed, default=LOAD.seed)


def _add_traffic(group: argparse._ArgumentGroup) -> None:
    text = "random items, the histories of a file, or sessions of users who return"
    _add(group, "--traffic", text, choices=get_args(TrafficKind), default=TRAFFIC.kind)
    text = "length of random prompts; the most that sessions grow to"
    _add(group, "--prompt-tokens", text, type=count, default=TRAFFIC.prompt_tokens)
    _add(group, "--histories", "JSON lines with item ids, oldest first, in `history`", type=Path)
    _add(group, "--users", "sessions: how many may return", type=count, default=TRAFFIC.users)
    text = "sessions: how many were here before the first point; each is asked for once"
    _add(group, "--known-users", text, type=count, default=TRAFFIC.known)
    _add(group, "--zipf", "sessions: exponent of their popularity", type=from_0, default=TRAFFIC.zipf)
    text = "sessions: share of requests by users who were here before"
    _add(group, "--returning", text, type=share, default=TRAFFIC.returning)
    text = "sessions: items that these have taken since"
    _add(group, "--new-items", text, type=count, default=TRAFFIC.new_items)
    text = "sessions: full histories slide, under a template of this window_step; absent: they lose an eighth"
    _add(group, "--window-step", text, type=count)
    text = "or a mix such as 50:0.8,512:0.2"
    _add(group, "--beam-width", text, metavar="W[:SHARE,...]", default="50")
    _add(group, "--n", "results per request; absent: the width", type=count)
    _add(group, "--timeout-ms", "deadline of a request; absent: the deployment's", type=count)
    _add(group, "--priority", "of the requests; absent: none is sent", type=int)


def _add_output(group: argparse._ArgumentGroup) -> None:
    text = "answers to compare with: JSON lines of prompt_ids (or history) and beams"
    _add(group, "--reference", text, type=Path)
    _add(group, "--save-answers", "file for the answers, a reference of a later run", type=Path)
    _add(group, "--plot", "PNG file: latency and answers per second against the rate", type=Path)


def traffic_settings(args: argparse.Namespace) -> TrafficSettings:
    """What is asked. Raises ConfigError."""
    widths = Widths.parse(args.beam_width)
    if args.n and args.n > min(widths.widths):
        raise ConfigError(f"--n is {args.n}, the smallest --beam-width {min(widths.widths)}: lower --n")
    return TrafficSettings(
        kind=args.traffic,
        prompt_tokens=args.prompt_tokens,
        histories=args.histories,
        users=args.users,
        known=args.known_users,
        zipf=args.zipf,
        returning=args.returning,
        new_items=args.new_items,
        window_step=args.window_step,
        widths=widths,
        n=args.n,
        timeout_ms=args.timeout_ms,
        priority=args.priority,
        seed=args.seed,
    )


def load_settings(args: argparse.Namespace) -> LoadSettings:
    """How a point is measured."""
    return LoadSettings(
        duration=args.duration,
        warm_up=args.warm_up,
        burstiness=args.burstiness,
        slo=args.slo_ms / 1e3,
        answered=args.answered,
        seed=args.seed,
    )


def _add(group: argparse._ArgumentGroup, flag: str, text: str, *names: str, **options: Any) -> None:
    default = "" if options.get("default") is None else " (default: %(default)s)"
    group.add_argument(flag, *names, help=text + default, **options)
