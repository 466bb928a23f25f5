"""Readers of all source formats, to the same columns.

Readers check the types of what they read and know where each row stands; what the rows mean is checked in
checks.py, once for all of them.
"""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from xgr_runtime.catalog.columns import EXPECTED, PIECE, Columns, Row, canonical, joined
from xgr_runtime.catalog.declared import Names
from xgr_runtime.catalog.doubled import doubled_name
from xgr_runtime.catalog.index_json import read_index
from xgr_runtime.catalog.parquet import read_parquet
from xgr_runtime.catalog.text_tables import read_tabs
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def read_columns(source: Path, names: Names) -> Columns:
    """The rows of `source`, all together as lists: see `read_pieces`. Raises CatalogError."""
    return joined(read_pieces(source, names))


def read_pieces(source: Path, names: Names) -> Iterator[Columns]:
    """The rows of `source`, some at a time, by its suffix; of a folder, those of all its parts.

    Raises CatalogError that names the file and the line.
    """
    if source.is_dir():
        return _read_parts(source, names)
    return _read_file(source, _READERS.get(source.suffix.lower()), names)


def _read_file(source: Path, reader: Reader | None, names: Names) -> Iterator[Columns]:
    if reader is None:
        raise CatalogError(f"{source}: a catalog source ends in {', '.join(_READERS)}: rename or convert it")
    if source.exists() and not source.is_file():  # reading a pipe or a device may never end
        raise CatalogError(f"{source} cannot be read, it is no ordinary file: check the path")
    try:
        yield from reader(source, names)
    except OSError as error:
        raise CatalogError(f"{source} cannot be read ({error.strerror or error}): check the path") from error


def _read_parts(folder: Path, names: Names) -> Iterator[Columns]:
    """A folder as distributed jobs write it: parts in order of their names; a JSON part holds lines."""
    readers = _READERS | {".json": read_jsonl}
    paths = sorted(path for path in folder.iterdir() if path.name[0] not in "._")
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= set(readers):
        found = ", ".join(sorted(kinds)) or "nothing"
        raise CatalogError(
            f"{folder}: parts of a catalog are files of one kind, there is {found}: name a file"
        )
    for path in paths:
        for piece in _read_file(path, readers[path.suffix.lower()], names):
            piece.place = _of(path, piece.place)
            yield piece


def _of(path: Path, place: Callable[[int], str]) -> Callable[[int], str]:
    return lambda row: f"{path.name}, {place(row)}"


def read_jsonl(source: Path, names: Names) -> Iterator[Columns]:
    """One object per line; blank lines are skipped."""
    decode = msgspec.json.Decoder(_row_type(names)).decode
    lines: list[int] = []
    rows: list[Any] = []
    attributes: list[bytes] = []
    with source.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise CatalogError(f"{source} is not UTF-8 text: convert it")
            if line.isspace():
                continue
            try:
                row = decode(line)
                if problem := doubled_name(line, _names(row)):
                    raise CatalogError(problem)
                attributes.append(canonical(row.attributes))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CatalogError) as error:
                hint = _item_hint(line, names.item)
                raise CatalogError(f"{source}: line {number}{hint}: {error!s:.300}: {EXPECTED}") from error
            lines.append(number)
            rows.append(row)
            if len(rows) == PIECE:
                yield _of_rows(source, rows, lines, attributes)
                lines, rows, attributes = [], [], []
    if rows:
        yield _of_rows(source, rows, lines, attributes)


def _names(row: Any) -> int:
    """In the line that it was, at least."""
    given = (row.title is not None) + (row.popularity is not None) + (row.attributes is not None)
    return 2 + given + len(row.attributes or ())


def _of_rows(source: Path, rows: Sequence[Any], lines: Sequence[int], attributes: list[bytes]) -> Columns:
    numbers = array("q", lines)  # kept for messages as long as the catalog is built
    return Columns.of_sids(
        source,
        [row.item for row in rows],
        [row.sid for row in rows],
        lambda row: f"line {numbers[row]}",
        titles=[row.title for row in rows],
        popularity=[row.popularity for row in rows],
        attributes=attributes,
    )


def _row_type(names: Names) -> type[Any]:
    """What a line holds. Where names are declared, the file is somebody else's, and may hold more."""
    if names == Names():
        return Row
    ours = msgspec.structs.fields(Row)
    fields = [(f.name, f.type) if f.required else (f.name, f.type, f.default) for f in ours]
    return msgspec.defstruct("Row", fields, rename=msgspec.structs.asdict(names), gc=False)


def _item_hint(line: bytes, name: str) -> str:
    """The item of a line that could not be taken, where it can still be read."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return f", item {value[name]!r:.80}" if isinstance(value, dict) and name in value else ""


def _whole(reader: Callable[[Path, Names], Columns]) -> Reader:
    """A reader of files that have to be read whole."""

    def read(source: Path, names: Names) -> Iterator[Columns]:
        columns = reader(source, names)
        if len(columns.items):
            yield columns

    return read


Reader = Callable[["Path", Names], "Iterator[Columns]"]
_READERS: dict[str, Reader] = {
    ".json": _whole(read_index),
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
    ".tsv": _whole(read_tabs),
    ".txt": _whole(read_tabs),
}
