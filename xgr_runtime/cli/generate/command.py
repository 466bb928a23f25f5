"""The flow of `xgr generate`: look at the lines, ask what is not answered yet, put all into one file.

Exit code 1 says that lines have an error in the place of an answer, 130 that the run was interrupted: the
same command goes on where it ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.deployment import add_deployment_flags, asking
from xgr_runtime.cli.numbers import count
from xgr_runtime.config import check_secret
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import check_writable

if TYPE_CHECKING:
    import argparse

    from xgr_runtime.cli.generate.journal import Journal
    from xgr_runtime.cli.generate.lines import Lines

FORMS = (".jsonl", ".parquet")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `generate` to the command line; the parsed arguments carry `generate` as `func`."""
    about = "answer a file of requests as batch work"
    parser = subparsers.add_parser("generate", help=about, description=about, allow_abbrev=False)
    add = parser.add_argument
    add("source", type=Path, help="JSON lines, each the body of a request to /generate")
    add("--out", type=Path, required=True, help="the file to write: .jsonl or .parquet")
    add(
        "--keep",
        default="",
        metavar="FIELD,...",
        help="fields of the lines that are copied to the output, not sent",
    )
    add("--beam-width", type=count, help="of requests that name none")
    add("--n", type=count, help="results of requests that name no number")
    add("--online", action="store_true", help="as online work: batch work fills what others leave")
    add("--in-flight", type=count, default=32, help="requests at a time (default: %(default)s)")
    add(
        "--patience",
        type=count,
        default=600,
        metavar="SECONDS",
        help="for a deployment that answers nothing (default: %(default)s)",
    )
    add_deployment_flags(parser)
    parser.set_defaults(func=generate)


def generate(args: argparse.Namespace) -> int:
    """The whole run. Ctrl-C and SIGTERM end it early; nothing that was answered is lost."""
    from xgr_runtime.cli.generate.journal import Journal
    from xgr_runtime.cli.generate.lines import Lines

    if args.out.suffix not in FORMS:
        raise ConfigError(f"--out {args.out} must end in {' or '.join(FORMS)}")
    check_writable(args.out, "--out")
    if args.out.exists() and args.source.exists() and args.out.samefile(args.source):
        raise ConfigError(f"--out {args.out} is the file of requests: name another")
    if args.api_key:
        check_secret(args.api_key, "--api-key, or the variable of the environment in its place,")
    with Lines(args.source, [name for name in args.keep.split(",") if name]) as lines:
        settings = [lines.digest, args.beam_width, args.n, sorted(lines.keep)]
        with Journal(args.out, settings) as journal:
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
            _ask(args, lines, journal)
            return _finish(args.out, lines, journal)


def _ask(args: argparse.Namespace, lines: Lines, journal: Journal) -> None:
    """All lines without an answer. Raises DeploymentError, KeyboardInterrupt."""
    from xgr_runtime.cli.generate.asking import Asker
    from xgr_runtime.cli.generate.progress import LineProgress

    if len(journal.done) == lines.total:
        return
    with asking(args, timeout=10) as client:
        client.http.get("/readiness")  # whatever it says: somebody is there
    with LineProgress(lines.total, len(journal.done)) as progress:
        asker = Asker(args, journal, progress)
        asyncio.run(asker.run(lines))


def _finish(out: Path, lines: Lines, journal: Journal) -> int:
    from xgr_runtime.cli.generate.output import write

    errors = write(out, journal, lines)
    journal.remove()
    said = f"{out}: {lines.total} lines, {errors.count} of them with an error"
    print(f"{said}; {errors.first}" if errors.count else said, file=sys.stderr)
    return 1 if errors.count else os.EX_OK
