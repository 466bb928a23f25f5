"""The command line, `xgr COMMAND`. Each command loads its code when it runs."""

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence

from xgr_runtime.cli import (
    ask,
    bench,
    catalog,
    completion,
    demo,
    generate,
    imports,
    keys,
    plan,
    prompt,
    ray,
    serve,
    trace,
    verify,
)
from xgr_runtime.config import check_environ
from xgr_runtime.errors import StartupError, XgrError
from xgr_runtime.process.lifecycle import one_line

COMMANDS = (
    serve,
    ray,
    imports,
    verify,
    prompt,
    demo,
    ask,
    catalog,
    generate,
    bench,
    plan,
    keys,
    trace,
    completion,
)
NOBODY_READS = 141  # what a shell says of a program that ended by SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: the command's own; for an error one line on stderr and 2 (nothing was started) or 1."""
    try:
        try:
            parser = _parser()
            if "_ARGCOMPLETE" in os.environ:  # set by what `xgr completion` prints
                completion.complete(parser)
            return _run(parser.parse_args(argv))
        finally:
            sys.stdout.flush()  # at the end of Python nobody could catch what it raises
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NOBODY_READS


def _nobody_reads() -> bool:
    """Whether our output goes nowhere, as behind `| head`. What is left of it is let go of."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        os.close(nowhere)
    return gone


def _run(args: argparse.Namespace) -> int:
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
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser
