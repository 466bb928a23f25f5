"""`xgr generate`: answers for a file of requests, beside online work, each line exactly once."""

from xgr_runtime.cli.generate.command import add_parser

__all__ = ["add_parser"]
