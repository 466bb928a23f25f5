"""The flow of `xgr catalog import`: a generation becomes a built file, later ones become edits."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.cli.deployment import DeploymentError, add_deployment_flags, asking
from xgr_runtime.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xgr_runtime.cli.bundle.generations import Generation

MOST_LINES = 1 << 22  # that one batch takes
_POSTING = 600.0  # seconds that a server gets for a batch


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `import` to the commands of `catalog`."""
    about = "make a catalog of a TorchEasyRec SID bundle, or send what later generations add"
    command = commands.add_parser("import", help=about, description=about, allow_abbrev=False)
    command.add_argument("bundle", type=Path, help="its root: the folder of the generations")
    command.add_argument(
        "--sid-format", required=True, help="what codes are spelt as, such as '<a_{0}><b_{1}><c_{2}>'"
    )
    command.add_argument("--generation", default="", help="which one (default: the newest)")
    command.add_argument("--out", type=Path, help="the catalog file to write of that generation")
    command.add_argument("--model-path", type=Path, help="the checkpoint folder: tokenizer and vocabulary")
    command.add_argument("--base-model-path", default="", help="what an adapter there was trained on")
    command.add_argument("--catalog-json", type=Path, help="templates and scoring of the file")
    command.add_argument(
        "--since",
        default="",
        help="instead: the items that generations after this one add, as lines of edits",
    )
    add_deployment_flags(command, "", "send these to a router, a batch for each generation")
    command.add_argument("--follow", action="store_true", help="go on with generations as they come")
    command.add_argument(
        "--every", type=_seconds, default=10.0, help="seconds between looks (default: %(default)s)"
    )
    command.set_defaults(func=run)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86_400:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0.1 to 86400")
    return seconds


def run(args: argparse.Namespace) -> int:
    """0, or an error that says what to change."""
    if bool(args.out) == bool(args.since):
        raise ConfigError(
            "name either --out FILE, for a catalog, or --since GENERATION, for what came after it"
        )
    if args.out and (args.url or args.follow):
        raise ConfigError("--url and --follow go with --since: build a catalog once, then follow from there")
    if args.since:
        return _follow(args)
    return _build(args)


def _build(args: argparse.Namespace) -> int:
    from xgr_runtime.catalog import build_catalog
    from xgr_runtime.catalog.declared import Declared
    from xgr_runtime.checkpoint import described
    from xgr_runtime.cli.bundle.generations import COLUMNS, ITEMS, SIDS, check_buckets, named, read_bundle

    if args.catalog_json is not None and not args.catalog_json.is_file():
        raise ConfigError(f"--catalog-json {args.catalog_json} is no file: check the path")
    generation = named(read_bundle(args.bundle), args.generation)
    table = generation.table(ITEMS)
    generation.check_codes(table)
    buckets = generation.table(SIDS)
    generation.check_codes(buckets)
    with described(args.model_path, args.base_model_path) if args.model_path else nullcontext() as files:
        form = Declared(args.sid_format, (), COLUMNS)
        catalog = build_catalog(table, files, flags=form, beside=args.catalog_json)
    check_buckets(buckets, generation, catalog)
    catalog.save(args.out)
    print(
        f"{args.out}: generation {generation.name}, {catalog.items} items on {catalog.leaves} leaves, "
        f"version {catalog.version}"
    )
    return 0


def _follow(args: argparse.Namespace) -> int:
    """Prints or sends the edits of all generations after one, in their order."""
    from xgr_runtime.cli.bundle.generations import after, named, read_bundle

    current = named(read_bundle(args.bundle), args.since)
    tell = _sender(args) if args.url else _print
    while True:
        later = after(read_bundle(args.bundle), current)
        if later is not None:
            tell(later, list(_lines(later, args.sid_format)))
            current = later
        elif not args.follow:
            return 0
        else:
            time.sleep(args.every)


def _lines(generation: Generation, sid_format: str) -> Iterator[bytes]:
    """An edit for each item that a generation adds."""
    import msgspec

    from xgr_runtime.catalog.checks import encoded_ids
    from xgr_runtime.catalog.declared import CODE, Declared, spell
    from xgr_runtime.catalog.sources import read_pieces
    from xgr_runtime.cli.bundle.generations import COLUMNS, NEW_ITEMS

    form = Declared(sid_format, (), COLUMNS)
    if (problem := form.problem()) or not CODE.search(sid_format):
        raise ConfigError(f"--sid-format: {problem or 'it holds no codes, such as {0}'}: correct it")
    table = generation.table(NEW_ITEMS)
    generation.check_codes(table)
    depth = len(generation.manifest.codebook)
    for piece in read_pieces(table, COLUMNS):
        ids = encoded_ids(piece).texts()
        spelt = spell(piece, form).lists()
        for row, item in enumerate(ids):
            sid = spelt.tokens[row * depth : (row + 1) * depth]
            yield msgspec.json.encode({"add": {"item": item.decode(), "sid": sid}}) + b"\n"


def _print(generation: Generation, lines: list[bytes]) -> None:
    sys.stdout.buffer.writelines(lines)
    sys.stdout.flush()


def _sender(args: argparse.Namespace) -> Callable[[Generation, list[bytes]], None]:
    """Sends a generation's edits as one batch, whose key is its uuid: sent again, it changes nothing."""

    def send(generation: Generation, lines: list[bytes]) -> None:
        if len(lines) > MOST_LINES:
            raise CatalogError(
                f"{generation.folder} adds {len(lines)} items, a batch takes {MOST_LINES}: push a catalog"
            )
        try:
            with asking(args, _POSTING) as client:
                change = client.edit_lines(lines, generation.manifest.bundle_uuid)
        except DeploymentError as error:
            raise DeploymentError(f"{generation.folder}: {error}") from None
        print(f"{generation.name}: {len(lines)} items added, version {change.version}", flush=True)

    return send
