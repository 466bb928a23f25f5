"""The flow of `xgr plan`: read traffic and devices, play mixes by price, say which one it is.

Exit code 2 says that no plan was found, and why.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.numbers import above_0, count, seed
from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.planning.traffic import PlannedRequest, PlannedTraffic

LEAST = 100  # requests of a simulation: fewer have no p99


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `plan` to the command line; the parsed arguments carry `plan` as `func`."""
    about = "find the cheapest devices that hold a promise under some traffic, by simulation"
    parser = subparsers.add_parser("plan", help=about, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("traffic", type=Path, help="TOML file: rate, prompts, widths, slo_ms; see docs/planning.md")
    add("--devices", type=Path, required=True, help="TOML file: devices with their prices and costs")
    text = "JSON lines of requests with at, prompt_tokens and beam_width: they come instead of drawn ones"
    add("--recorded", type=Path, help=text)
    add("--rate", type=above_0, help="requests per second; absent: the file's, or the recorded ones'")
    text = "that are played for each mix, a tenth of them before it counts (default: %(default)s)"
    add("--requests", type=count, default=2000, help=text)
    text = "mixes that are played before it is given up (default: %(default)s)"
    add("--most-played", type=count, default=300, help=text)
    add("--seed", type=seed, default=0, help="of the drawn requests (default: %(default)s)")
    parser.set_defaults(func=plan)


def plan(args: argparse.Namespace) -> int:
    """The whole run. Raises ConfigError, ModelError."""
    import msgspec
    from rich.console import Console

    from xgr_runtime.cli.plan import show
    from xgr_runtime.planning.devices import read_devices
    from xgr_runtime.planning.search import Planner
    from xgr_runtime.planning.traffic import read_traffic

    if args.requests < LEAST:
        raise ConfigError(f"--requests is {args.requests}: of fewer than {LEAST} nobody can say a p99")
    traffic = read_traffic(args.traffic)
    requests, rate = requests_of(args, traffic)
    traffic = msgspec.structs.replace(traffic, rate=rate)
    kinds, around = read_devices(args.devices)
    console = Console(highlight=False, stderr=True)
    planner = Planner(
        kinds,
        around,
        traffic,
        requests,
        args.most_played,
        seen=lambda mix, played: console.print(show.line(mix, played, traffic), soft_wrap=True),
    )
    found = planner.cheapest()
    even = show.even_split(planner, found)
    show.report(found, even, traffic)
    print(json.dumps(show.as_json(found, even, traffic)), flush=True)
    return 0


def requests_of(args: argparse.Namespace, traffic: PlannedTraffic) -> tuple[Sequence[PlannedRequest], float]:
    """What is played, and how many come per second. Raises ConfigError."""
    from xgr_runtime.planning.traffic import drawn, read_recorded

    if args.recorded is None:
        return drawn(traffic, args.requests, args.seed), args.rate or traffic.rate
    requests, rate = read_recorded(args.recorded)
    if len(requests) < LEAST:
        raise ConfigError(f"{args.recorded} has {len(requests)} requests: record at least {LEAST}")
    return requests[: args.requests], args.rate or rate
