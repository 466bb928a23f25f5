"""`xgr demo`: from nothing to real recommendations from real processes, in one command."""

from xgr_runtime.cli.demo.command import add_parser, run_demo

__all__ = ["add_parser", "run_demo"]
