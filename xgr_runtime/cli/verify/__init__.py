"""`xgr verify`: holds a deployment against the lists of other evaluation code, or of Hugging Face."""

from xgr_runtime.cli.verify.command import add_parser

__all__ = ["add_parser"]
