"""`xgr serve`: the whole topology in the foreground, until SIGTERM or Ctrl-C."""

import argparse
from typing import Any

from xgr_runtime.config import ServeConfig, add_flags, from_args
from xgr_runtime.process.log import configure


def add_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """`xgr serve` with one flag per field of `ServeConfig`."""
    about = "start a router and its workers, and serve until SIGTERM or Ctrl-C"
    parser = subparsers.add_parser("serve", help=about, description=about, allow_abbrev=False)
    add_flags(parser, ServeConfig)
    parser.set_defaults(func=serve)


def serve(args: argparse.Namespace) -> int:
    """0 after a drained stop. Raises `StartupError` when the deployment cannot start."""
    from xgr_runtime.launcher.deployment import (
        Deployment,  # loads the catalog code, which `xgr --help` can do without
    )

    config = from_args(ServeConfig, args)
    configure("xgr", config.log_level)
    Deployment(config).run_forever()
    return 0
