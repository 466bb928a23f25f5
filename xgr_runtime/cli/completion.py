"""`xgr completion`: what a shell has to read to complete commands and flags. argcomplete does the rest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh", "fish")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds `completion` to the command line."""
    about = "print what makes a shell complete commands and flags"
    bash = 'bash and zsh read it by eval "$(xgr completion SHELL)"'
    more = f"{about}; {bash}, fish by xgr completion fish | source, in a start-up file"
    parser = subparsers.add_parser("completion", help=about, description=more, allow_abbrev=False)
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(func=completion)


def completion(args: argparse.Namespace) -> int:
    """0."""
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["xgr"], shell=args.shell))  # type: ignore[no-untyped-call]
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that is completing, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser)
