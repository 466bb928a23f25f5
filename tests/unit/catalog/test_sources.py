"""The three source formats give one catalog; every mistake in one is named with item and line."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_catalogs import build_from_arrays, items_of_leaf, leaf_of_sid
from tokenizers import Tokenizer, models, pre_tokenizers

from xgr_runtime.catalog import Catalog, build_catalog
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = 3, 43, 83  # first ids of the three levels


def sid(*codes: int) -> list[str]:
    return [f"<{level}_{code}>" for level, code in zip("abc", codes, strict=False)]


def rows(count: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "item": str(number),
            "sid": sid(rng.randrange(4), rng.randrange(4), rng.randrange(3)),
            "title": f"Tïtle {number}",
            "popularity": rng.randrange(5),
            "attributes": {"stock": number, "brand": f"b{number % 3}"},
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def write_parquet(path: Path, lines: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(lines), path)
    return path


def write_index(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({line["item"]: line["sid"] for line in lines}))
    return path


def test_formats_and_row_orders_give_one_version(tmp_path: Path, checkpoint: Path) -> None:
    lines = rows()
    shuffled = random.Random(1).sample(lines, len(lines))
    catalogs = [
        build_catalog(write_jsonl(tmp_path / "a.jsonl", lines), checkpoint),
        build_catalog(write_jsonl(tmp_path / "b.jsonl", shuffled), checkpoint),
        build_catalog(write_parquet(tmp_path / "c.parquet", shuffled), checkpoint),
    ]
    assert len({catalog.version for catalog in catalogs}) == 1
    assert all(catalog.title("7") == "Tïtle 7" for catalog in catalogs)
    assert all(catalog.attributes("7") == {"stock": 7, "brand": "b1"} for catalog in catalogs)
    assert catalogs[0].title("nobody") is None
    assert catalogs[0].attributes("nobody") == {}


def test_index_and_bare_jsonl_give_one_version(tmp_path: Path, checkpoint: Path) -> None:
    lines = [{"item": row["item"], "sid": row["sid"]} for row in rows()]
    as_ids = [[A + 1, B + 2, C + 0], [A + 1, B + 2, C + 1]]
    index = build_catalog(write_index(tmp_path / "index.json", lines), checkpoint)
    jsonl = build_catalog(write_jsonl(tmp_path / "a.jsonl", ["", *lines, " ", ""]), checkpoint)
    assert index.version == jsonl.version
    assert build_catalog(write_index(tmp_path / "index.json", lines[1:]), checkpoint).version != index.version
    texts = [{"item": 1, "sid": sid(1, 2, 0)}, {"item": 2, "sid": sid(1, 2, 1)}]
    numbers = [{"item": str(row + 1), "sid": ids} for row, ids in enumerate(as_ids)]
    from_texts = build_catalog(write_jsonl(tmp_path / "t.jsonl", texts), checkpoint)
    from_numbers = build_catalog(write_jsonl(tmp_path / "n.jsonl", numbers), checkpoint)
    assert from_texts.version == from_numbers.version
    assert from_texts.sids.tolist() == as_ids


@pytest.mark.parametrize("change", ["title", "popularity", "attributes", "sid", "item"])
def test_any_change_of_content_changes_the_version(change: str) -> None:
    base: dict[str, Any] = {
        "items": ["1", "2"], "sids": [[5], [5]], "titles": ["x", "y"], "popularity": [2, 1],
        "attributes": [{"a": 1}, None],
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "title": {"titles": ["x", "z"]},
        "popularity": {"popularity": [1, 2]},
        "attributes": {"attributes": [None, {"a": 1}]},
        "sid": {"sids": [[5], [6]]},
        "item": {"items": ["1", "3"]},
    }
    assert build(base).version != build(base | changes[change]).version


def build(columns: dict[str, Any]) -> Catalog:
    return build_from_arrays(columns["items"], columns["sids"], **{
        name: columns[name] for name in ("titles", "popularity", "attributes")
    })  # fmt: skip


def test_collisions_come_by_popularity_then_number_then_text() -> None:
    items = ["b", "10", "9", "a", "top", "none"]
    popularity = [1, 1, 1, 1, 5, None]
    catalog = build_from_arrays(items, [[4, 4]] * 6, popularity=popularity)
    assert items_of_leaf(catalog, 0) == ["top", "9", "10", "a", "b", "none"]
    assert items_of_leaf(build_from_arrays(items, [[4, 4]] * 6), 0) == ["9", "10", "a", "b", "none", "top"]


GOOD = ["1", sid(1, 1, 1)]
DEPTH = "depth must be 1 to 8"
BAD_JSONL: dict[str, tuple[list[Any], str]] = {
    "unknown-token": ([GOOD, ["2", sid(1, 99, 1)]], "line 2, item '2': token '<b_99>' is unknown"),
    "unk-token-is-no-match": ([["1", ["<a_1>", "??"]]], "line 1, item '1': token '??' is unknown"),
    "out-of-vocabulary": ([["1", [3, 4, 123]]], "line 1, item '1': token 123 is out of vocabulary"),
    "negative": ([["1", [3, 4, -1]]], "line 1, item '1': token -1 is out of vocabulary"),
    "above-64-bits": ([["1", [2**63]]], f"line 1, item '1': token {2**63} is out of vocabulary"),
    "uneven": ([GOOD, ["2", sid(1, 1)]], "line 2, item '2': uneven depth, the SID has 2 tokens and those"),
    "too-deep": ([["1", [3] * 9]], f"line 1, item '1': the SID has 9 tokens: {DEPTH}"),
    "no-tokens": ([["1", []]], f"line 1, item '1': the SID has 0 tokens: {DEPTH}"),
    "duplicate": (
        [GOOD, ["2", sid(2, 1, 1)], [1, sid(2, 1, 1)]],
        "line 3: item '1' is a duplicate of line 1: remove",
    ),
    "empty-id": ([["", sid(1, 1, 1)]], "line 1: item '' must be a non-empty string"),
    "boolean-token": ([["1", [True, 3, 4]]], "line 1, item '1': Expected `int | str`, got `bool`"),
}


@pytest.mark.parametrize("case", BAD_JSONL)
def test_bad_jsonl_is_named(case: str, tmp_path: Path, checkpoint: Path) -> None:
    lines, message = BAD_JSONL[case]
    source = write_jsonl(tmp_path / "x.jsonl", [{"item": item, "sid": tokens} for item, tokens in lines])
    expect(source, checkpoint, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the catalog is empty: give it at least one item"),
        ("\n\n", "the catalog is empty"),
        ('{"item": "1", "sid": [3]}\n{"item": "2"', "line 2: Input data was truncated"),
        ('{"item": "1"}', "line 1, item '1': Object missing required field `sid`"),
        ('{"item": "1", "sid": true}', "line 1, item '1': Expected `int | str | array`, got `bool`"),
        ('{"item": "1", "sid": [3], "titel": "x"}', "unknown field `titel`"),
        ('{"item": null, "sid": [3]}', "line 1, item None: Expected `int | str`"),
        ('{"item": "1", "sid": [3], "popularity": "many"}', "line 1, item '1': Expected `float | null`"),
        ("[" * 100_000, "line 1"),
        (
            '\n{"item": "1", "item": "2", "sid": [3]}',
            "line 2, item '2': an object has 'item' twice: keep one",
        ),
        (
            '{"item": "1", "sid": [3], "title": null, "title" : ": "}',
            "line 1, item '1': an object has 'title'",
        ),
        (
            '{"item": "1", "sid": [3], "attributes": {"a": [{"b": 1, "\\u0062": 2}]}}',
            "an object has 'b' twice",
        ),
        ('{"item": "\\ud800", "sid": [3]}', "line 1"),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_malformed_jsonl_is_named(text: str, message: str, tmp_path: Path, checkpoint: Path) -> None:
    source = tmp_path / "x.jsonl"
    source.write_text(text)
    expect(source, checkpoint, message)


INDEX_LINES = '{\n "1": ["<a_1>"],\n "x, }\\"": ["<a_2>"],\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "the catalog is empty"),
        (
            '{"1": {"sid": ["<a_1>"]},\n"2": {"sid": [], "sid": []}}',
            "line 2: an object has 'sid' twice: keep one",
        ),
        ('{"1": {"sid": ["<a_1>"], "more": [{"x": 1, "x": 1}]}}', "line 1: an object has 'x' twice"),
        (INDEX_LINES + ' "1": ["<a_3>"]\n}', "line 4: item '1' is a duplicate of line 2"),
        (INDEX_LINES + ' "3": ["<z_3>"]\n}', "line 4, item '3': token '<z_3>' is unknown"),
        (INDEX_LINES + ' "3": [[]]\n}', "line 4, item '3': [] in the SID is neither"),
        (INDEX_LINES + ' "3": [1.5]\n}', "line 4, item '3': 1.5 in the SID is neither"),
        (INDEX_LINES + ' "3": [true]\n}', "line 4, item '3': True in the SID is neither"),
        (INDEX_LINES + ' "3": {"a": 1}\n}', "line 4, item '3': the SID is [('a', 1)]: it must be a list"),
        ('{"3": {"a": 1}}', "line 1, item '3': the SID is None: it must be a list"),
        (INDEX_LINES + ' "3": null\n}', "line 4, item '3': the SID is None: it must be a list"),
        (INDEX_LINES + ' "3": ["<a_1>", "<b_1>"]\n}', "line 4, item '3': uneven depth"),
        (INDEX_LINES + ' "\\ud800": ["<a_1>"]\n}', "line 4: item id '\\ud800' is not valid Unicode"),
        (INDEX_LINES + ' "": ["<a_1>"]\n}', "line 4: item '' must be a non-empty string"),
        ("[]", "must be one JSON object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=lambda text: repr(text[-24:]),
)
def test_bad_index_is_named(text: str, message: str, tmp_path: Path, checkpoint: Path) -> None:
    source = tmp_path / "index.json"
    source.write_text(text)
    expect(source, checkpoint, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"item": "1"}, "columns missing ['sid']"),
        ({"item": "1", "sid": [3], "brand": "x"}, "unknown ['brand']"),
        ({"item": "1", "sid": [3], "title": 5}, "column 'title' holds int"),
        ({"item": "1", "sid": [3], "attributes": [1]}, "column 'attributes' holds int"),
        ({"item": "1", "sid": [3], "attributes": [{"a": 1}]}, "column 'attributes' holds dict"),
        ({"item": "1", "sid": [3.5]}, "row 1, item '1': 3.5 in the SID is neither"),
        ({"item": None, "sid": [3]}, "row 1: item None must be a non-empty string"),
        ({"item": "1", "sid": None}, "row 1, item '1': the SID is None"),
        ({"item": "1", "sid": [3], "popularity": float("nan")}, "row 1, item '1': popularity is nan"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_parquet_is_named(line: dict[str, Any], message: str, tmp_path: Path, checkpoint: Path) -> None:
    expect(write_parquet(tmp_path / "x.parquet", [line]), checkpoint, message)


def test_parquet_maps_are_attributes(tmp_path: Path) -> None:
    pairs = pa.array([[("a", 1), ("b", 2)], None], pa.map_(pa.string(), pa.int64()))
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"item": [1, 2], "sid": [[3], [4]], "attributes": pairs}), path)
    catalog = build_catalog(path)
    assert (catalog.attributes("1"), catalog.attributes("2")) == ({"a": 1, "b": 2}, {})


def test_unreadable_sources_are_named(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{")
    expect(tmp_path / "x.parquet", checkpoint, "is not a Parquet file")
    expect(tmp_path / "x.json", checkpoint, "is not UTF-8 text")
    expect(tmp_path / "x.csv", checkpoint, "a catalog source ends in .json, .jsonl, .parquet")
    expect(tmp_path / "none.json", checkpoint, "cannot be read")
    expect(tmp_path / "x.json", tmp_path / "none", "must name a checkpoint folder")


def test_strings_need_a_tokenizer(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"item": "1", "sid": ["<a_1>"]}])
    expect(
        source,
        None,
        "line 1, item '1': token '<a_1>' is a string and there is no tokenizer: pass --model-path",
    )


def test_a_byte_level_token_is_found_by_its_text(tmp_path: Path) -> None:
    """Byte-level vocabularies spell a leading space as another character."""
    tokenizer = Tokenizer(models.BPE(vocab={"Ġ": 0, "x": 1, "Ġx": 2}, merges=[("Ġ", "x")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = write_jsonl(tmp_path / "x.jsonl", [{"item": "1", "sid": [" x", "x"]}])
    assert build_catalog(source, tmp_path).sids.tolist() == [[2, 1]]
    expect(write_jsonl(source, [{"item": "1", "sid": ["xx"]}]), tmp_path, "token 'xx' is unknown")


@pytest.mark.parametrize("depth", [1, 8], ids=lambda depth: f"depth={depth}")
def test_shallowest_and_deepest(depth: int, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"item": "only", "sid": [9] * depth}])
    (tmp_path / "catalog.json").write_text('{"sid_format": "token_ids"}')
    catalog = build_catalog(source, vocab_size=10)
    assert (catalog.depth, catalog.leaves, catalog.items) == (depth, 1, 1)
    assert leaf_of_sid(catalog, [9] * depth) == 0
    assert items_of_leaf(catalog, 0) == ["only"]
    assert catalog.vocab_size_needed == 10


def test_wide_code_books_sort_without_packing() -> None:
    """Eight levels that each span 31 bits do not fit into one 63-bit key."""
    rng = random.Random(3)
    sids = [[rng.choice([0, 5, 2**31 - 1]) for _ in range(8)] for _ in range(200)]
    catalog = build_from_arrays([str(row) for row in range(200)], sids)
    assert catalog.sids.tolist() == sorted([list(sid) for sid in {tuple(sid) for sid in sids}])


def expect(source: Path, checkpoint: Path | None, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        build_catalog(source, checkpoint)
    assert message in str(caught.value)
