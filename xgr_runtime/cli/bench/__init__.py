"""`xgr bench`: load on a running deployment, and what it answers, how fast, how right."""

from xgr_runtime.cli.bench.command import add_parser, bench

__all__ = ["add_parser", "bench"]
