"""`xgr catalog` for files: build, import, inspect, verify; those for a running deployment are beside."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xgr_runtime.catalog.declared import Declared, Names
from xgr_runtime.cli.bundle import command as bundle
from xgr_runtime.cli.catalog_live import add_commands
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    import argparse

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.catalog.attributes import AttributeColumn
    from xgr_runtime.catalog.template import Template


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `catalog` and its commands; each sets `func`, which returns the exit code or raises."""
    parser = subparsers.add_parser("catalog", help="build catalog files, and change what a deployment serves")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("build", help="build a catalog file from a table of items and SIDs")
    command.add_argument(
        "source",
        type=Path,
        help="index.json, .jsonl, .parquet, .tsv, .txt or a folder of parts; catalog.json beside it counts",
    )
    command.add_argument("--out", type=Path, required=True, help="the file to write")
    command.add_argument("--model-path", type=Path, help="the checkpoint folder: tokenizer and vocabulary")
    command.add_argument("--base-model-path", default="", help="what an adapter there was trained on")
    add_source_flags(command)
    command.set_defaults(func=build)

    bundle.add_parser(commands)

    command = commands.add_parser("inspect", help="say what a catalog file holds")
    command.add_argument("file", type=Path)
    command.set_defaults(func=inspect)

    command = commands.add_parser("verify", help="reread a catalog file and check everything in it")
    command.add_argument("file", type=Path)
    command.set_defaults(func=check)

    add_commands(commands)


def add_source_flags(command: argparse.ArgumentParser) -> None:
    """What may have to be declared of a source: `declared_by` reads it."""
    command.add_argument(
        "--sid-format",
        default="",
        help="what codes are spelt as, such as '<a_{0}><b_{1}><c_{2}>', or token_ids",
    )
    command.add_argument(
        "--sid-packed", default="", help="codes per level, such as 8192,8192,8192, where a SID is one number"
    )
    for column in Names.__struct_fields__:
        command.add_argument(
            f"--{column}-column", default=column, help=f"the column of the source that is {column}"
        )


def build(args: argparse.Namespace) -> int:
    from xgr_runtime.catalog import PromptTemplate, build_catalog
    from xgr_runtime.checkpoint import described

    with described(args.model_path, args.base_model_path) if args.model_path else nullcontext() as files:
        catalog = build_catalog(args.source, files, flags=declared_by(args))
        if files is not None:
            _check_templates(catalog, files)
    catalog.save(args.out)
    print(f"{args.out}: {catalog.items} items on {catalog.leaves} leaves, version {catalog.version}")
    default = catalog.templates.default
    if isinstance(default, PromptTemplate) and not default.prefix:
        print("note: prompts have no prefix; --model-path or catalog.json beside the source can give one")
    return 0


def _check_templates(catalog: Catalog, checkpoint: Path) -> None:
    """Raises CatalogError for a template that no request could be answered with."""
    from xgr_runtime.catalog import PromptTemplate
    from xgr_runtime.prompts import Prompts
    from xgr_runtime.tokenizer import read_tokenizer

    if any(not isinstance(one, PromptTemplate) for one in catalog.templates.named.values()):
        Prompts.read(read_tokenizer(checkpoint), checkpoint).check(catalog)


def declared_by(args: argparse.Namespace) -> Declared:
    """What the flags of `add_source_flags` say. Raises CatalogError."""
    sizes = args.sid_packed.split(",") if args.sid_packed else []
    if not all(size.isdecimal() and len(size) < 10 for size in sizes):
        raise CatalogError(
            f"--sid-packed is {args.sid_packed!r:.80}: write whole numbers with commas between"
        )
    names = Names(**{name: getattr(args, f"{name}_column") for name in Names.__struct_fields__})
    return Declared(args.sid_format, tuple(map(int, sizes)), names)


def inspect(args: argparse.Namespace) -> int:
    from xgr_runtime.catalog import Catalog
    from xgr_runtime.catalog.file import map_memory, sealed_file

    with sealed_file(args.file) as memory:
        catalog = Catalog.mapped(args.file, *map_memory(memory, args.file))
        size = os.fstat(memory.fileno()).st_size
    for name, value in summary(catalog, size).items():
        print(f"{name:<12} {value}")
    return 0


def check(args: argparse.Namespace) -> int:
    from xgr_runtime.catalog import verify_file

    print(f"{args.file}: ok, version {verify_file(args.file).version}")
    return 0


def summary(catalog: Catalog, file_bytes: int) -> dict[str, str]:
    """What a person wants to know of a catalog, by name."""
    shared, worst = catalog.collisions()
    lines = {
        "version": catalog.version,
        "depth": str(catalog.depth),
        "items": str(catalog.items),
        "leaves": str(catalog.leaves),
        "collisions": f"{shared} items share a SID with another, at most {worst} on one",
        "vocabulary": f"{catalog.vocab_size} tokens, {catalog.vocab_size_needed} needed",
    }
    for level, (mean, most) in enumerate(catalog.branching()):
        nodes = catalog.trie.nodes[level]
        lines[f"level {level}"] = f"{nodes} nodes, children per node above: mean {mean:.2f}, max {most}"
    lines |= {f"template {name}:": _described(one) for name, one in catalog.templates.named.items()}
    lines["scoring"] = _scoring(catalog)
    for name, column in catalog.columns.items():
        lines[f"attribute {name}:"] = _column(column, catalog.items)
    lines["size"] = f"{file_bytes / 1e6:.1f} MB, of which the trie {catalog.trie_bytes / 1e6:.1f} MB"
    return lines


def _described(template: Template) -> str:
    """One line of a template."""
    from xgr_runtime.catalog import PromptTemplate

    shown = msgspec.structs.asdict(template) if isinstance(template, PromptTemplate) else template.texts
    parts = [
        f"{name} {list(value) if isinstance(value, tuple) else repr(value)}"
        for name, value in shown.items()
        if name not in ("max_history_items", "window_step")
    ]
    most = template.max_history_items
    return ", ".join([*parts, "all items that fit" if most is None else f"newest {most} items"])


def _column(column: AttributeColumn, items: int) -> str:
    """One line of an attribute."""
    if column.kind == "other":
        return "no column: its values are of several kinds, or such as filters do not read"
    known = column.known(0, items)
    nulls = 0 if known is None else items - int(known.sum())
    texts = f", {len(column.texts.offsets) - 1} different texts" if len(column.texts.offsets) else ""
    return f"{column.kind}, {nulls} items have none{texts}"


def _scoring(catalog: Catalog) -> str:
    scoring = catalog.scoring
    head, tail = ([forced.token for forced in some] for some in (scoring.head, scoring.tail))
    unscored = [forced.token for forced in (*scoring.head, *scoring.tail) if not forced.scored]
    return (
        f"head {head}, tail {tail}, not scored of these {unscored}, length_penalty {scoring.length_penalty}, "
        f"score_mode {scoring.score_mode}, repetition_penalty {scoring.repetition_penalty}"
        f"{', normalised again behind it' if scoring.renormalize else ''}"
    )
