"""SIDs in every form that files have them in: the right tokens, or an error that says what to declare."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_tokenizers import pieces, saved
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from xgr_runtime.catalog import build_catalog
from xgr_runtime.catalog.declared import Declared, Names, split_sid
from xgr_runtime.cli import main
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.catalog import Catalog

ROWS = [("7", [3, 0, 39]), ("18446744073709551615", [0, 12, 4]), ("x", [39, 39, 0])]
FORMAT = "<a_{0}><b_{1}><c_{2}>"
FIRST = 3  # token id of <a_0>; 40 codes a level
CODES = 40


def ids(codes: list[int]) -> list[int]:
    return [FIRST + CODES * level + code for level, code in enumerate(codes)]


def spelt(codes: list[int], between: str = "") -> str:
    return between.join(f"<{letter}_{code}>" for letter, code in zip("abc", codes, strict=True))


def packed(codes: list[int]) -> int:
    return (codes[0] * CODES + codes[1]) * CODES + codes[2]


def sids(catalog: Catalog) -> dict[str, list[int]]:
    leaves = catalog.leaves_of_items([item for item, _ in ROWS])
    return {item: catalog.sids[leaf].tolist() for (item, _), leaf in zip(ROWS, leaves, strict=True)}


RIGHT = {item: ids(codes) for item, codes in ROWS}


def declare(folder: Path, **fields: Any) -> None:
    (folder / "catalog.json").write_text(json.dumps(fields))


def write_lines(path: Path, rows: list[dict[str, Any]], mark: bytes = b"") -> Path:
    path.write_bytes(mark + "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


@pytest.mark.parametrize("between", ["", " ", "\t", "  "], ids=repr)
@pytest.mark.parametrize("kind", ["json", "jsonl", "object", "txt"])
def test_one_text(kind: str, between: str, tmp_path: Path, checkpoint: Path) -> None:
    texts = {item: spelt(codes, between) for item, codes in ROWS}
    path = tmp_path / f"index.{kind}"
    match kind:
        case "json":
            path.write_text(json.dumps(texts))
        case "object":
            path = path.with_suffix(".json")
            rows: dict[str, dict[str, Any]] = {
                k: {"sid": v, "title": f"t {k}", "more": [k]} for k, v in texts.items()
            }
            rows["x"]["attributes"] = {"brand": {"name": "b"}}
            path.write_text(json.dumps(rows))
        case "jsonl":
            write_lines(path, [{"item": item, "sid": text} for item, text in texts.items()], b"\xef\xbb\xbf")
        case _ if between != "\t":
            path.write_text("".join(f"{text}\ta title\twith a tab\t{item}\n" for item, text in texts.items()))
        case _:
            return
    catalog = build_catalog(path, checkpoint)
    assert sids(catalog) == RIGHT
    if kind == "object":
        assert catalog.attributes("x") == {"more": ["x"], "brand": {"name": "b"}}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv", "flags", "parts"])
@pytest.mark.parametrize("form", ["codes", "packed"])
def test_codes_whose_spelling_is_declared(kind: str, form: str, tmp_path: Path, checkpoint: Path) -> None:
    """In a table of somebody else, with columns of other names beside those that are named."""
    size = {"sid_packed": [CODES] * 3} if form == "packed" else {}
    rows = [{"pid": item, "codes": packed(c) if size else c, "when": 1} for item, c in ROWS]
    path = tmp_path / f"items.{'jsonl' if kind == 'flags' else kind}"
    flags = None
    if kind == "flags":
        flags = Declared(FORMAT, tuple(size.get("sid_packed", ())), Names(item="pid", sid="codes"))
    else:
        declare(tmp_path, sid_format=FORMAT, columns={"item": "pid", "sid": "codes"}, **size)
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "tsv" if size:
            path.write_text("pid\tcodes\twhen\n" + "".join(f"{i}\t{packed(c)}\t1\n" for i, c in ROWS))
        case "tsv":
            path.write_text("pid\tcodes\twhen\n" + "".join(f"{i}\t{spelt(c)}\t1\n" for i, c in ROWS))
        case "parts":
            path.mkdir()
            (path / "_SUCCESS").touch()
            for number, row in enumerate(rows):
                write_lines(path / f"part-{number:05}.json", [row])
        case _:
            write_lines(path, rows)
    assert sids(build_catalog(path, checkpoint, flags=flags)) == RIGHT


def test_flags_of_the_command(tmp_path: Path, checkpoint: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"pid": item, "n": packed(codes)} for item, codes in ROWS])
    built = tmp_path / "x.xgr"
    command = ["catalog", "build", str(path), "--out", str(built), "--model-path", str(checkpoint)]
    flags = ["--sid-format", FORMAT, "--sid-packed", "40,40,40", "--item-column", "pid", "--sid-column", "n"]
    assert main([*command, *flags]) == 0 and built.is_file()


def test_a_table_of_pandas_or_hive(tmp_path: Path, checkpoint: Path) -> None:
    """An index beside the columns, and texts as bytes; item ids of 64 bits without a sign."""
    index = pa.array(np.arange(3))
    tokens = pa.array([[t.encode() for t in split_sid(spelt(c))] for _, c in ROWS], pa.list_(pa.binary()))
    texts = pa.array([item.encode() for item, _ in ROWS], pa.large_binary())
    pq.write_table(
        pa.table({"item": texts, "sid": tokens, "__index_level_0__": index}), tmp_path / "a.parquet"
    )
    assert sids(build_catalog(tmp_path / "a.parquet", checkpoint)) == RIGHT
    numbers = pa.array([7, 2**64 - 1, 2**63], pa.uint64())
    pq.write_table(pa.table({"item": numbers, "sid": tokens}), tmp_path / "b.parquet")
    catalog = build_catalog(tmp_path / "b.parquet", checkpoint)
    assert (catalog.leaves_of_items(["7", "18446744073709551615", "9223372036854775808"]) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([[3, 4, 5], [9, 3, 8]], {}, "3 stands at level 1 and one before, as codes do"),
        ([[0, 0, 0]], {}, "0 stands at level 1"),
        ([[11, 80, 200]], {}, "as a token id 11 would be"),
        (["1 2 3"], {}, "would be '1', a piece of text"),
        ([[1, 2], [3, 4]], {"sid_format": FORMAT}, "the SID has the codes [1, 2], sid_format has 3"),
        ([[1, -2, 3]], {"sid_format": FORMAT}, "the SID has the codes [1, -2, 3]"),
        ([[1, 2, CODES]], {"sid_format": FORMAT}, "token '<c_40>' is unknown"),
        ([5], {"sid_format": FORMAT}, "the SID has the codes [5], sid_format has 3"),
        ([64000], {"sid_format": FORMAT, "sid_packed": [40] * 3}, "the SID 64000 is not within sid_packed"),
        ([-1], {"sid_format": FORMAT, "sid_packed": [CODES] * 3}, "the SID -1 is not within sid_packed"),
        ([[1, 2, 3]], {"sid_format": "<a_{0}><b_{0}>"}, "must hold {0}, {1}, ... once each"),
        ([[1, 2, 3]], {"sid_format": "<a_{1}><b_{2}>"}, "must hold {0}, {1}, ... once each"),
        ([[1, 2, 3]], {"sid_format": "<a_{1}><b_{0}><c_{2}>"}, "once each, in this order"),
        ([[1, 2, 3]], {"sid_format": "<a_{0}><b_{1}><b_{2}>"}, "spells two levels alike"),
        ([[1, 2, 3]], {"sid_format": "<a_{0}><c_{1}><b_{2}>"}, "sid_format has <c_{1}> before <b_{2}>"),
        ([[1, 2, 3]], {"sid_format": "<b_{0}><a_{1}><c_{2}>"}, "sid_format has <b_{0}> before <a_{1}>"),
        ([[1, 2, 3]], {"sid_format": "<a>"}, "must hold {0}, {1}, ... once each"),
        ([[1, 2, 3]], {"sid_format": 7}, "Expected `str`, got `int`"),
        ([7], {"sid_format": FORMAT, "sid_packed": [40, 40]}, "sid_packed names 2 levels and sid_format 3"),
        ([7], {"sid_format": FORMAT, "sid_packed": [40, 0, 40]}, "each level has at least one code"),
        ([[1, 2, 3]], {"columns": {"items": "pid"}}, "unknown field `items`"),
        ([[1, 2, 3]], {"columns": {"item": "sid"}}, "columns gives two of them one name"),
        ([[1, 2, 3]], {"sid_fromat": FORMAT}, "unknown fields ['sid_fromat']"),
    ],
)  # fmt: skip
def test_what_was_not_or_wrongly_declared(
    rows: list[Any], fields: dict[str, Any], said: str, tmp_path: Path, words: Path
) -> None:
    declare(tmp_path, **fields)
    path = write_lines(tmp_path / "x.jsonl", [{"item": str(n), "sid": sid} for n, sid in enumerate(rows)])
    with pytest.raises(CatalogError) as caught:
        build_catalog(path, words)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("sid", "form", "missing"),
    [
        ("<a_1><b_2>", "", "<c_0>"),
        ("<b_1><c_2>", "", "<a_0>"),
        ("<a_1><c_2>", "", "<b_0>"),
        ("<a_1><b_2>", "<a_{0}><b_{1}>", None),
        ("<a_1><b_2>", "token_ids", None),
        ("<a_1><b_2><c_3>", "", None),
        ("<a_1><a_2>", "", None),
    ],
)
def test_a_level_too_few(sid: str, form: str, missing: str | None, tmp_path: Path, words: Path) -> None:
    declare(tmp_path, sid_format=form)
    path = write_lines(tmp_path / "x.jsonl", [{"item": "1", "sid": sid}])
    if missing is None:
        build_catalog(path, words)
        return
    with pytest.raises(CatalogError, match=f"such as {missing}: if a level is missing.*declare .sid_format"):
        build_catalog(path, words)


@pytest.mark.parametrize(
    ("sizes", "swapped"),
    [([8, 16, 4], [16, 8, 4]), ([8, 16, 4], [4, 8, 16]), ([8, 8, 2], [2, 8, 8]), ([3, 4, 40], [40, 4, 3])],
)
def test_sizes_of_levels_in_another_order(sizes: list[int], swapped: list[int], tmp_path: Path) -> None:
    levels = zip("abc", sizes, strict=True)
    spelt = ["<unk>", *(f"<{name}_{code}>" for name, size in levels for code in range(size))]
    saved(tmp_path, Tokenizer(WordLevel({token: n for n, token in enumerate(spelt)}, unk_token="<unk>")))
    path = write_lines(tmp_path / "x.jsonl", [{"item": "1", "sid": 0}])
    build_catalog(path, tmp_path, flags=Declared(FORMAT, tuple(sizes)))
    with pytest.raises(CatalogError, match="sid_packed says that level") as raised:
        build_catalog(path, tmp_path, flags=Declared(FORMAT, tuple(swapped)))
    assert str(sizes) in str(raised.value)


@pytest.mark.parametrize("first", [3, 60, 200])
def test_codes_with_an_offset_are_no_ids_where_a_tokenizer_has_bytes(first: int, tmp_path: Path) -> None:
    pieces(tmp_path, legacy=True)
    rows = [[first + n, first + 8 + n, first + 16 + n] for n in range(8)]
    path = write_lines(tmp_path / "x.jsonl", [{"item": str(n), "sid": sid} for n, sid in enumerate(rows)])
    with pytest.raises(CatalogError, match="would be '<0x"):
        build_catalog(path, tmp_path)


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"], ids=repr)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=repr)
def test_a_line_ends_where_a_file_says_so(letter: str, end: str, tmp_path: Path, checkpoint: Path) -> None:
    text = end.join(["<a_1><b_1><c_1>\tone" + letter + "two\tx", "<a_2><b_1><c_1>\tthree\ty", ""])
    (tmp_path / "x.txt").write_bytes(text.encode())
    catalog = build_catalog(tmp_path / "x.txt", checkpoint)
    assert catalog.titles_at(catalog.item_rows(["x", "y"])) == [f"one{letter}two", "three"]


@pytest.mark.parametrize("fields", [{}, {"sid_format": "token_ids"}])
def test_integers_that_can_be_nothing_else_are_token_ids(
    fields: dict[str, Any], tmp_path: Path, words: Path
) -> None:
    declare(tmp_path, **fields)
    rows = [[271, 312, 352], [280, 320, 360]] if not fields else [[11, 11, 200]]
    path = write_lines(tmp_path / "x.jsonl", [{"item": str(n), "sid": sid} for n, sid in enumerate(rows)])
    assert build_catalog(path, words).sids.tolist() == rows


@pytest.mark.parametrize("sid", ["1,2,3", "[1,2,3]", "(0,0)", "10-2-3", "1_2_3", "1/2/3/4"])
@pytest.mark.parametrize("fields", [{}, {"sid_format": FORMAT}], ids=["", "declared"])
def test_numbers_with_signs_between(
    sid: str, fields: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    declare(tmp_path, **fields)
    path = write_lines(tmp_path / "x.jsonl", [{"item": "7", "sid": sid}])
    said = f"item '7': token '{sid}' is numbers with signs between them: write a SID of numbers as a list"
    with pytest.raises(CatalogError, match=re.escape(said)):
        build_catalog(path, checkpoint)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"item": "1", "sid": ["<a_1>"]}\n'.encode("utf-16"), "is not UTF-8 text: convert it"),
        ("a.json", '{"1": ["<a_1>"]}'.encode("utf-16"), "is not UTF-8 text"),
        ("a.tsv", b"\xff\xfea\tb", "is not UTF-8 text"),
        ("a.txt", b"<a_1>\n", "line 1 holds '<a_1>': a line is SID, tab, title, tab, item"),
        ("a.tsv", b"item\tsid\n1\t<a_1>\tmore\n", "line 2 has 3 cells and the first line 2"),
        ("a.tsv", b"item\tsid\tpopularity\n1\t<a_1>\tmany\n", "line 2: popularity is 'many'"),
        (
            "a.json",
            b'{"1": {"sid": "<a_1>", "popularity": "many"}}',
            "line 1: popularity is 'many': write a number",
        ),
        (
            "a.json",
            b'{"1": {"sid": "<a_1>", "attributes": {"brand": 1}, "brand": 2}}',
            "line 1: attributes is {'brand': 1}: write an object of fields that are not beside it",
        ),
        (
            "a.json",
            b'{"1": {"sid": "<a_1>", "attributes": [1]}}',
            "line 1: attributes is [1]: write an object",
        ),
        ("a.csv", b"item,sid", "a catalog source ends in .json, .jsonl, .parquet, .tsv, .txt"),
    ],
)
def test_files_that_cannot_be_taken(
    name: str, content: bytes, said: str, tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CatalogError) as caught:
        build_catalog(tmp_path / name, checkpoint)
    assert said in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("names", [[], ["a.json", "b.parquet"], ["a.csv"]])
def test_folders_that_are_no_parts(names: list[str], tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    with pytest.raises(CatalogError, match="parts of a catalog are files of one kind, there is"):
        build_catalog(folder, checkpoint)


def test_an_error_in_a_part_names_the_part_and_its_line(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "items.jsonl"
    folder.mkdir()
    for number, (item, codes) in enumerate(ROWS):
        write_lines(folder / f"part-{number}.json", [{"item": item, "sid": spelt(codes)}])
    write_lines(
        folder / "part-3.json",
        [{"item": "y", "sid": "<a_1><b_2><c_3>"}, {"item": "7", "sid": "<a_1><b_2><c_3>"}],
    )
    with pytest.raises(
        CatalogError, match=r"part-3.json, line 2: item '7' is a duplicate of part-0.json, line 1"
    ):
        build_catalog(folder, checkpoint)


@given(
    st.lists(st.from_regex(r"<[^<>\s]+>|[^<>\s]+", fullmatch=True), min_size=1, max_size=6),
    st.sampled_from(" \n\t"),
)
def test_tokens_with_blanks_between_come_back(tokens: list[str], blank: str) -> None:
    assert split_sid(blank.join(tokens)) == tokens
