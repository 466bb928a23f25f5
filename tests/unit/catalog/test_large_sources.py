"""Sources that are read piece by piece: pieces agree with the whole, arrays with Python values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.catalog import build_catalog, columns, parquet, sources
from xgr_runtime.catalog.columns import canonical, canonical_table
from xgr_runtime.catalog.declared import Declared, Names
from xgr_runtime.catalog.items import id_order, pack_strings
from xgr_runtime.catalog.order import row_order
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CODES = 40
FORMAT = "<a_{0}><b_{1}><c_{2}>"
IDS = st.one_of(
    st.integers(0, 30).map(str),
    st.from_regex(r"0{0,3}[0-9]{1,20}", fullmatch=True),
    st.from_regex(r"item-number-00[0-9]{0,12}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24),
)


@given(st.data())
def test_rows_come_by_sid_popularity_and_id(data: st.DataObject) -> None:
    ids = data.draw(st.lists(IDS, min_size=1, max_size=40, unique=True))
    depth = data.draw(st.sampled_from([1, 2, 8]))
    wide = data.draw(st.booleans())  # of more bits than one key has
    codes = st.sampled_from([0, 2**31 - 1] if wide else [0, 1, 2])
    sids = [data.draw(st.tuples(*[codes] * depth)) for _ in ids]
    known = data.draw(st.booleans())
    popularity = [data.draw(st.sampled_from([0.0, 1.5, -np.inf])) for _ in ids] if known else [0.0] * len(ids)
    table = pack_strings([item.encode() for item in ids])
    order = row_order(table, np.array(sids, np.int32), np.array(popularity) if known else None)
    right = sorted(range(len(ids)), key=lambda row: (sids[row], -popularity[row], id_order(ids[row])))
    assert order.tolist() == right


@given(st.lists(st.dictionaries(st.text(max_size=4), st.none() | st.integers(-9, 9) | st.text(max_size=5))))
def test_attributes_of_many_rows_are_those_of_each(rows: list[dict[str, Any]]) -> None:
    assert canonical_table(rows).texts() == [canonical(row) for row in rows]


def test_attributes_that_cannot_be_stored_are_named() -> None:
    with pytest.raises(CatalogError, match="cannot be stored"):
        canonical_table([{"a": 1}, {"b": {1: object()}}])


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (columns, parquet, sources):
        monkeypatch.setattr(module, "PIECE", 7)


def rows(count: int = 100) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (count, 3)) // 8
    return [
        {
            "item": number,
            "sid": codes[number].tolist(),
            "title": f"t\u00e4\n{number}" if number % 3 else None,
            "popularity": float(number % 5) if number % 4 else None,
            "attributes": {
                "price": number / 8 if number % 5 else None,
                "brand": f'"b{number % 3}"',
                "late": "2026-01-02" if number < 50 else "x",
            },
        }
        for number in range(count)
    ]


def in_parquet(path: Path, lines: list[dict[str, Any]], **types: pa.DataType) -> Path:
    table = pa.Table.from_pylist(lines)
    for name, kind in types.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(kind))
    pq.write_table(table, path, row_group_size=16)
    return path


def in_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def packed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**line, "sid": int(np.dot(line["sid"], [CODES**2, CODES, 1]))} for line in lines]


def spelt(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**line, "sid": [f"<{a}_{c}>" for a, c in zip("abc", line["sid"], strict=True)]} for line in lines
    ]


@pytest.mark.usefixtures("small_pieces")
def test_forms_and_types_give_one_version(tmp_path: Path, checkpoint: Path) -> None:
    lines = rows()
    codes, packs = Declared(FORMAT), Declared(FORMAT, (CODES,) * 3)
    made: dict[str, tuple[Path, Declared]] = {
        "lines": (in_lines(tmp_path / "a.jsonl", spelt(lines)), Declared()),
        "codes-in-lines": (in_lines(tmp_path / "b.jsonl", lines), codes),
        "texts": (in_parquet(tmp_path / "c.parquet", spelt(lines)), Declared()),
        "codes": (in_parquet(tmp_path / "d.parquet", lines), codes),
        "large": (in_parquet(tmp_path / "e.parquet", lines, sid=pa.large_list(pa.int32())), codes),
        "packed": (in_parquet(tmp_path / "f.parquet", packed(lines)), packs),
        "unsigned": (in_parquet(tmp_path / "g.parquet", packed(lines), sid=pa.uint64()), packs),
        "ids-as-texts": (in_parquet(tmp_path / "h.parquet", lines, item=pa.large_string()), codes),
    }
    versions = {
        name: build_catalog(path, checkpoint, flags=form).version for name, (path, form) in made.items()
    }
    assert len(set(versions.values())) == 1, versions


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[20].update(item=3), "{21}: item '3' is a duplicate of {4}"),
        (lambda lines: lines[20].update(sid=[1, 2]), "{21}, item '20': the SID has the codes [1, 2]"),
        (lambda lines: lines[20].update(sid=[1, 2, CODES]), "{21}, item '20': token '<c_40>' is unknown"),
        (lambda lines: lines[20].update(sid=[1, -2, 3]), "{21}, item '20': the SID has the codes [1, -2, 3]"),
        (lambda lines: lines[20].update(popularity=1e999), "{21}, item '20': popularity is inf"),
    ],
    ids=["duplicate", "depth", "unknown", "negative", "infinite"],
)
def test_mistakes_in_later_pieces_are_named(
    kind: str, change: Callable[[list[dict[str, Any]]], None], said: str, tmp_path: Path, checkpoint: Path
) -> None:
    lines = rows(30)
    change(lines)
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path = in_lines(path, [{k: v for k, v in line.items() if v != np.inf} for line in lines])
        if "inf" in said:
            return  # which JSON cannot say
    else:
        in_parquet(path, lines)
    place = {"jsonl": "line", "parquet": "row"}[kind]
    with pytest.raises(CatalogError) as caught:
        build_catalog(path, checkpoint, flags=Declared(FORMAT))
    for number in (21, 4):
        said = said.replace(f"{{{number}}}", f"{place} {number}")
    found = str(caught.value).replace("item 20:", "item '20':")
    assert said in found


def test_lists_are_what_the_arrays_hold(tmp_path: Path) -> None:
    lines = rows(20)
    path = in_parquet(tmp_path / "x.parquet", lines)
    (piece,) = sources.read_pieces(path, Names())
    assert isinstance(piece.tokens, np.ndarray)
    listed = sources.read_columns(path, Names())
    assert [str(line["item"]) for line in lines] == listed.items
    assert [code for line in lines for code in line["sid"]] == listed.tokens
    assert [line["popularity"] for line in lines] == listed.popularity
    assert [line["title"] for line in lines] == listed.titles
    assert [canonical(line["attributes"]) for line in lines] == listed.attributes
