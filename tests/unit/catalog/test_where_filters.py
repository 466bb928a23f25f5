"""An expression with allowed and denied items: leaves and items are those that rows one by one leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_catalogs import build_from_arrays
from small_catalogs import example

from xgr_kernels.trie import MAX_DENIED, leaf_filter
from xgr_runtime.catalog import Catalog, CatalogView, build_catalog, resolve_items, verify_file
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.file import write_file
from xgr_runtime.catalog.where import kept
from xgr_runtime.catalog.where.words import conjuncts
from xgr_runtime.errors import CatalogError


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """3,000 items on about 900 leaves, with a number each, or none."""
    rng = np.random.default_rng(0)
    sids = rng.integers(0, 10, (3000, 3)) * rng.integers(0, 2, (3000, 3))
    return build_from_arrays(
        [f"i{row}" for row in range(3000)], sids, attributes=[{"n": n} if n else None for n in NUMBERS]
    )


NUMBERS = np.random.default_rng(1).integers(0, 10, 3000).tolist()  # 0: none


@pytest.mark.parametrize("denied", [0, 5, MAX_DENIED, 2000], ids="deny={}".format)
@pytest.mark.parametrize("allowed", [None, 0, 20, 2500], ids="allow={}".format)
@pytest.mark.parametrize("sql", ["n < 3", "n IS NULL", "n >= 0", "n > 99", "TRUE"])
def test_leaves_and_items_are_those_of_the_rows_left(
    catalog: Catalog, sql: str, allowed: int | None, denied: int
) -> None:
    rng = np.random.default_rng(denied)
    names = [f"i{row}" for row in range(3000)]
    deny = rng.choice(names, denied, replace=False).tolist()
    allow = None if allowed is None else rng.choice(names, allowed, replace=False).tolist()
    value = {
        "n < 3": lambda n: 0 < n < 3,
        "n IS NULL": lambda n: n == 0,
        "n >= 0": lambda n: n > 0,
        "n > 99": lambda n: False,
        "TRUE": lambda n: True,
    }[sql]
    matching = {name for name, n in zip(names, NUMBERS, strict=True) if value(n)}
    left = sorted((matching if allow is None else matching & {*allow}) - {*deny})
    live = CatalogView(catalog).filters.left_by(sql)
    spec = resolve_items(catalog, allow, deny, live)
    leaves = sorted(set(catalog.leaves_of_items(left).tolist()))
    # What the router foresees, and what a decode worker makes of what it is sent.
    within = live.leaves if allow is None else None
    found = leaf_filter(catalog.leaves, spec.allow_leaves, spec.deny_leaves, within)
    alive = found.holds(np.arange(catalog.leaves, dtype=np.int32))
    alive[found.deny] = False
    assert np.flatnonzero(alive).tolist() == leaves
    assert found.live(catalog.leaves) == len(leaves) and len(found.deny) <= MAX_DENIED
    assert found.holds(found.deny).all(), "denied leaves are counted off those that live"
    items = catalog.items_of_leaves(
        leaves, allowed_rows=spec.allowed_rows, denied_rows=spec.denied_rows, live=live
    )
    assert sorted(item for some in items for item in some) == left and all(items)


def test_a_short_deny_list_shares_the_bitmap_that_is_kept(catalog: Catalog) -> None:
    live = CatalogView(catalog).filters.left_by("n >= 0").leaves
    found = leaf_filter(catalog.leaves, None, [0, 1, 2], live)
    assert found.bits is live.bits and found.rank is live.rank
    before = live.bits.copy()
    leaf_filter(catalog.leaves, None, np.arange(400), live)
    assert np.array_equal(live.bits, before)


def test_columns_are_built_saved_opened_and_verified(tmp_path: Path) -> None:
    source = tmp_path / "c.jsonl"
    source.write_text(
        '{"item": "a", "sid": [1, 2], '
        '"attributes": {"price": 2, "brand": "x", "tags": ["t"], "made": {"in": 1}}}'
        "\n"
        '{"item": "b", "sid": [1, 3], "attributes": {"price": 1.5}}\n'
        '{"item": "c", "sid": [1, 3], "attributes": null}\n'
    )
    (tmp_path / "catalog.json").write_text('{"sid_format": "token_ids"}')
    built = build_catalog(source)
    built.save(tmp_path / "c.xgr")
    opened = verify_file(tmp_path / "c.xgr")
    assert opened.version == built.version
    kinds = {name: column.kind for name, column in opened.columns.items()}
    assert kinds == {"brand": "string", "made": "other", "price": "float", "tags": "strings"}
    live = CatalogView(opened).filters.left_by("price < 2 OR 't' = ANY(tags)")
    assert [opened.item_id(row) for row in range(3) if live.holds(np.array([row]))[0]] == ["a", "b"]
    assert opened.attributes("a")["made"] == {"in": 1}


def test_declared_columns_are_the_only_ones_and_are_of_the_version(tmp_path: Path) -> None:
    source = tmp_path / "c.tsv"
    source.write_text("item\tsid\tprice\tcolor\na\t<1><2>\t2.50\tred\nb\t<1><3>\t\tblue\n")
    versions = set()
    for declared in ('{"price": "float"}', "{}", '{"price": "string", "color": "string"}'):
        (tmp_path / "catalog.json").write_text(
            '{"sid_format": "token_ids", "columns": {"item": "item"}, "attributes": ' + declared + "}"
        )
        catalog = build_catalog(_numbered(source))
        versions.add(catalog.version)
        if declared == '{"price": "float"}':
            assert catalog.columns["price"].values.tolist() == [2.5, 0.0] and list(catalog.columns) == [
                "price"
            ]
    assert len(versions) == 3
    (tmp_path / "catalog.json").write_text('{"sid_format": "token_ids", "attributes": {"color": "int"}}')
    with pytest.raises(CatalogError, match=r"item 'a': attribute 'color' is 'red', which is no int"):
        build_catalog(_numbered(source))


def _numbered(source: Path) -> Path:
    source.write_text(source.read_text().replace("<1><2>", "1 2").replace("<1><3>", "1 3"))
    return source


def test_a_catalog_without_columns_says_so() -> None:
    from xgr_runtime.errors import BadRequest

    with pytest.raises(BadRequest, match=r"no column 'price': the catalog has none"):
        CatalogView(example(titles=False)).filters.left_by("price < 1")


@pytest.mark.parametrize(
    ("name", "part"), [("column.0.values", np.array([5, 0, 0], np.int32)), ("attributes.fields", None)]
)
def test_damaged_columns_are_found(name: str, part: np.ndarray | None, tmp_path: Path) -> None:
    catalog = build_from_arrays(["a", "b", "c"], [[1], [2], [3]], attributes=[{"b": "x"}, None, {"b": "y"}])
    arrays = dict(catalog.arrays)
    arrays[name] = np.frombuffer(b"\x91\x01", np.uint8) if part is None else part
    write_file(tmp_path / "c.xgr", catalog._header, arrays)
    with pytest.raises(CatalogError, match=r"attribute.*build it again"):
        verify_file(tmp_path / "c.xgr")


PARTS = ["n < 6", "n > 2 OR n IS NULL", "n % 2 = 0", " NOT n IN (4, 5) "]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_conditions_that_are_kept_are_joined_without_a_look_at_values(
    catalog: Catalog, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = " AND ".join(f"({part})" for part in PARTS[:count])
    right = CatalogView(catalog).filters.left_by(whole)
    edits = EditBatch(
        put=(ItemRecord("new", tuple(catalog.sids[0].tolist()), "", None, b'{"n":4}'),), hide=("i7",)
    )
    view = CatalogView(catalog)
    for part in PARTS[:count]:
        view.filters.left_by(part)
    after = edited(view, edits)
    right_after = edited(CatalogView(catalog), edits).filters.left_by(whole)
    misses = view.filters.misses
    with monkeypatch.context() as patched:
        patched.setattr(kept, "live_rows", None)  # what evaluates a condition
        for found, wanted in (
            (view.filters.left_by(whole), right),
            (after.filters.left_by(whole), right_after),
        ):
            assert np.array_equal(found.rows, wanted.rows) and np.array_equal(found.true, wanted.true)
            assert np.array_equal(found.leaves.bits, wanted.leaves.bits) and found.text == whole
    assert view.filters.misses == after.filters.misses == misses and whole in view.filters


NOT_JOINED = [
    "n < 1",
    "(n < 1)",
    "(n < 1) OR (n > 2)",
    "(n < 1) AND (n > 2) OR (n = 5)",
    "(n < 1) AND n > 2",
    "(n) < 1 AND (n > 2)",
    "(n < 1) AND NOT (n > 2)",
    "((n < 1) AND (n > 2))",
    "(n < 1) AND",
    "(n) (n)",
]


@pytest.mark.parametrize("text", NOT_JOINED)
def test_other_conditions_are_read_whole(text: str) -> None:
    assert conjuncts(text) == []


def test_parts_of_a_conjunction_are_taken_as_they_stand() -> None:
    texts = ["brand = ') AND ('", " (n < 1) OR n > 2", '"a)b" IS NULL', "n IN (1, 2)"]
    assert conjuncts(" AND ".join(f"({text})" for text in texts)) == texts
    assert conjuncts("(n < 1)and\n(n > 2)") == ["n < 1", "n > 2"]
