"""`xgr plan`: the cheapest devices that hold a promise under some traffic."""

from xgr_runtime.cli.plan.command import add_parser

__all__ = ["add_parser"]
