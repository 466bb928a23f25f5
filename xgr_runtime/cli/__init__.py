"""The command line, `xgr COMMAND`. Each command loads its code when it runs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from xgr_runtime.cli import bench, catalog, demo, imports, keys, prompt, serve, trace, verify
from xgr_runtime.config import check_environ
from xgr_runtime.errors import StartupError, XgrError
from xgr_runtime.process.lifecycle import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: the command's own; for an error one line on stderr and 2 (nothing was started) or 1."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.func
    try:
        check_environ(os.environ)
        return run(args)
    except XgrError as error:
        print(f"xgr {args.command}: error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, StartupError) else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("xgr", description="Serving runtime for generative recommendation.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (serve, imports, verify, prompt, demo, catalog, bench, keys, trace):
        command.add_parser(subparsers)
    return parser
