"""`xgr ray up | status | down`: a deployment on a Ray cluster, from the serve.toml that `xgr serve` takes."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from xgr_runtime.config import ClusterConfig, ServeConfig, add_flags, from_args, read_cluster
from xgr_runtime.config.values import read_file

ADDRESS = (
    "of the cluster's head, HOST:PORT; auto: the cluster that this machine is part of (default: %(default)s)"
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `ray` and its commands; each sets `func`, which returns the exit code or raises."""
    parser = subparsers.add_parser("ray", help="run a deployment on a Ray cluster")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "start a deployment on the cluster, and return once it serves"
    command = commands.add_parser("up", help=about, description=about, allow_abbrev=False)
    command.add_argument("--address", default="auto", help=ADDRESS)
    add_flags(command, ServeConfig)
    command.set_defaults(func=up)

    for name, about, run in (
        ("status", "show who runs where; exit code 1 while somebody is missing", status),
        ("down", "let a deployment finish what it has, and end it", down),
    ):
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.add_argument("--address", default="auto", help=ADDRESS)
        command.add_argument("--name", help="of the deployment (default: that of --config, or xgr)")
        command.add_argument("--config", metavar="FILE", help="serve.toml whose [cluster] names it")
        if run is down:
            command.add_argument(
                "--now", action="store_true", help="end requests, too, that are not finished"
            )
        command.set_defaults(func=run)


def up(args: argparse.Namespace) -> int:
    """0 once all of it serves. Raises `StartupError`."""
    from xgr_runtime.cluster import commands

    serve = from_args(ServeConfig, args)
    cluster = _cluster(args)
    with commands.joined(args.address):
        url = commands.up(serve, cluster, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{cluster.name} serves at {url}")
    return 0


def status(args: argparse.Namespace) -> int:
    """0 with all there, else 1. Raises `ConfigError`."""
    from xgr_runtime.cluster import commands

    with commands.joined(args.address):
        found = commands.status(args.name or _cluster(args).name)
    print("\n".join(commands.lines(found)))
    reason = commands.missing(found)
    print(reason or "all that is wanted is there")
    return 1 if reason else 0


def down(args: argparse.Namespace) -> int:
    """0 once it has ended. Raises `ConfigError`."""
    from xgr_runtime.cluster import commands

    name = args.name or _cluster(args).name
    with commands.joined(args.address):
        commands.down(name, 0.0 if args.now else commands.DOWN_SECONDS)
    print(f"{name} has ended")
    return 0


def _cluster(args: argparse.Namespace) -> ClusterConfig:
    return read_cluster(read_file(args.config or os.environ.get("XGR_CONFIG")).get("cluster", {}))
