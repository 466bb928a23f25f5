"""`xgr import`: what a project's training left behind becomes a catalog, its templates and a `serve.toml`."""

from xgr_runtime.cli.imports.command import add_parser

__all__ = ["add_parser"]
