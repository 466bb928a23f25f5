"""The rows of a run in the order of their lines, as one file: JSON lines or Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from xgr_runtime.files import writing_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from xgr_runtime.cli.generate.journal import Journal, LineAnswer
    from xgr_runtime.cli.generate.lines import Lines

GROUP = 10_000  # rows of one group of a Parquet file


class Errors:
    """Rows that are errors: how many, and what the first says."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def see(self, row: LineAnswer) -> LineAnswer:
        """The row, which is counted if it is one."""
        if row.error:
            self.first = self.first or f"line {row.line}: {row.error}"
            self.count += 1
        return row


def write(out: Path, journal: Journal, lines: Lines) -> Errors:
    """All rows under that name, or nothing. Raises ConfigError."""
    errors = Errors()
    rows = (errors.see(journal.row(number)) for number in lines.numbers())
    with writing_whole(out) as stream:
        if out.suffix == ".parquet":
            _parquet(stream, rows, sorted(lines.keep))
        else:
            _json(stream, rows)
    return errors


def _json(stream: BinaryIO, rows: Iterator[LineAnswer]) -> None:
    for row in rows:
        fields = msgspec.structs.asdict(row)
        kept = fields.pop("kept")
        if not row.error:
            del fields["error"]
        stream.write(msgspec.json.encode({"line": fields.pop("line"), **kept, **fields}) + b"\n")


def _parquet(stream: BinaryIO, rows: Iterator[LineAnswer], keep: list[str]) -> None:
    """Kept fields are texts: strings as they are, anything else as its JSON; null where a line has none."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [
            ("line", pa.int64()),
            *((name, pa.string()) for name in keep),
            ("items", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float64())),
            ("sids", pa.list_(pa.list_(pa.int32()))),
            ("catalog_version", pa.string()),
            ("error", pa.string()),
        ]
    )
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        group: list[dict[str, object]] = []
        for row in rows:
            fields = msgspec.structs.asdict(row)
            kept = {name: _text(value) for name, value in fields.pop("kept").items()}
            group.append({**fields, **kept, "error": row.error or None})
            if len(group) == GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))


def _text(value: msgspec.Raw) -> str | None:
    found = msgspec.json.decode(value)
    if found is None or isinstance(found, str):
        return found
    return bytes(value).decode()
