"""`xgr catalog push | rollback | edit | status | history | filter`: the catalog of a running deployment."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xgr_runtime.cli.deployment import add_deployment_flags, asking
from xgr_runtime.cli.tables import new_table, show
from xgr_runtime.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from xgr_runtime.wire.answers import CatalogChange, CatalogInfo, HistoryEntry, NamedFilter

PATIENCE = 30.0  # seconds, for what is answered at once
LONG_PATIENCE = 1800.0  # for what workers take in first
SHOWN = 10  # unknown ids that are named


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Each sets `func`, which returns the exit code or raises."""
    command = commands.add_parser("push", help="serve another built catalog file, without a restart")
    command.add_argument("file", type=Path, help="that `xgr catalog build` wrote")
    _add_waiting(command)
    command.set_defaults(func=push)

    command = commands.add_parser("rollback", help="serve the catalog as it was before")
    command.add_argument("version", nargs="?", help="from `xgr catalog history` (default: the one before)")
    _add_waiting(command)
    command.set_defaults(func=rollback)

    command = commands.add_parser("edit", help="add, update, remove, hide, show and rank items")
    command.add_argument("file", type=Path, help='lines such as {"hide": "item id"}: all of them, or none')
    command.add_argument("--key", default="", help="sent again under the same key, nothing changes twice")
    command.add_argument("--version", default="", help="change nothing unless this one is current")
    _add_waiting(command)
    command.set_defaults(func=edit)

    command = commands.add_parser("status", help="who holds which version, and what is on its way")
    add_deployment_flags(command)
    command.set_defaults(func=status)

    command = commands.add_parser("history", help="what was served when, newest first")
    command.add_argument("--most", type=_count, default=20, help="entries (default: %(default)s)")
    add_deployment_flags(command)
    command.set_defaults(func=history)

    _add_filters(commands.add_parser("filter", help="name conditions that requests ask for"))


def _add_filters(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("set", help="name a condition, or change what a name stands for")
    command.add_argument("name", help="1 to 128 of A-Z a-z 0-9 _ . -")
    command.add_argument("where", help="such as 'in_stock AND price < 50'")
    add_deployment_flags(command)
    command.set_defaults(func=set_filter)

    command = commands.add_parser("remove", help="forget a name")
    command.add_argument("name")
    add_deployment_flags(command)
    command.set_defaults(func=remove_filter)

    command = commands.add_parser("list", help="the names, and what each stands for")
    add_deployment_flags(command)
    command.set_defaults(func=list_filters)


def _add_waiting(command: argparse.ArgumentParser) -> None:
    add_deployment_flags(command)
    command.add_argument(
        "--no-wait", action="store_true", help="do not wait until all workers have it: it is kept by then"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 10_000:
        import argparse

        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number from 1 to 10000")
    return int(text)


def push(args: argparse.Namespace) -> int:
    """Raises CatalogError for what is no built catalog, `DeploymentError`."""
    from xgr_runtime.catalog.file import is_built_file, read_header

    if not is_built_file(args.file):
        raise CatalogError(
            f"{args.file} is not a built catalog: run `xgr catalog build {args.file} --model-path CHECKPOINT "
            f"--out {args.file.with_suffix('.xgr')}`, and push that"
        )
    read_header(args.file)  # before it is sent
    with asking(args, LONG_PATIENCE) as client:
        _tell(client.push_catalog(args.file, not args.no_wait), args)
    return 0


def rollback(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, LONG_PATIENCE) as client:
        _tell(client.roll_back(args.version, not args.no_wait), args)
    return 0


def edit(args: argparse.Namespace) -> int:
    """Raises ConfigError for a file that cannot be read, `DeploymentError`."""
    try:
        with asking(args, LONG_PATIENCE) as client:
            _tell(client.edit_lines(args.file, args.key, args.version, not args.no_wait), args)
    except (OSError, ValueError) as error:  # the latter of what is no ordinary file
        raise ConfigError(f"{args.file} cannot be read ({error}): check the path") from None
    return 0


def _tell(change: CatalogChange, args: argparse.Namespace) -> None:
    if change.unknown:
        more = ", ..." if len(change.unknown) > SHOWN else ""
        named = ", ".join(change.unknown[:SHOWN]) + more
        print(f"not in the catalog, and left out ({len(change.unknown)}): {named}", file=sys.stderr)
    took = f"{change.visible_ms:.1f} ms"
    if not change.changed:
        print(f"version {change.version} was current already: nothing changed")
    elif args.no_wait:
        print(f"version {change.version} is kept after {took}; `xgr catalog status` says who has it")
    else:
        print(f"version {change.version} is served by {change.workers} decode workers after {took}")


def status(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, PATIENCE) as client:
        info = client.catalog()
    show(_versions(info))
    for line in state_lines(info):
        print(line)
    return 0


def state_lines(info: CatalogInfo) -> list[str]:
    """What the table of versions does not show."""
    lines = []
    if not info.changes:
        lines.append("this deployment serves one catalog: --catalog-store would let it change")
    if info.current != info.newest:
        lines.append(f"version {info.current} is kept, and not used yet")
    if (way := info.under_way) is not None:
        waits = ", ".join(f"{address} ({part:.0%})" for address, part in way.waits_for.items())
        since = f"a {way.kind} to {way.version} is under way for {way.seconds:.1f} s"
        lines.append(f"{since}, and waits for {waits}" if waits else since)
    return lines + [f"{address} gets no requests: {why}" for address, why in info.behind.items()]


def _versions(info: CatalogInfo) -> Table:
    from rich.text import Text

    shown = new_table("version", "new requests", "requests", "items", "decode workers")
    for one in info.versions:
        cells = (one.version, "yes" if one.newest else "", str(one.leases), str(one.items or ""))
        shown.add_row(*map(Text, cells), Text(", ".join(one.workers)))
    return shown


def history(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, PATIENCE) as client:
        entries = client.catalog_history(args.most)
    show(_changes(entries))
    return 0


def _changes(entries: list[HistoryEntry]) -> Table:
    from rich.text import Text

    shown = new_table("", "when", "what", "version", "kept", "")
    for one in entries:
        cells = (str(one.number), _when(one.at), one.kind, one.version, "yes" if one.kept else "no", one.note)
        shown.add_row(*map(Text, cells))
    return shown


def set_filter(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, PATIENCE) as client:
        found = client.set_filter(args.name, args.where)
    print(f"filter {found.name} is ready: {found.where}")
    return 0


def remove_filter(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, PATIENCE) as client:
        client.remove_filter(args.name)
    print(f"filter {args.name} is gone")
    return 0


def list_filters(args: argparse.Namespace) -> int:
    """Raises `DeploymentError`."""
    with asking(args, PATIENCE) as client:
        found = client.filters()
    show(_filters(found))
    return 0


def _filters(found: list[NamedFilter]) -> Table:
    from rich.text import Text

    shown = new_table("name", "since", "where")
    for one in found:
        shown.add_row(*map(Text, (one.name, _when(one.changed), one.where)))
    return shown


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
