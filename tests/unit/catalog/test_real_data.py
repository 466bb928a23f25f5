"""Real catalogs where XGR_TEST_DATA names them, generated ones of the same shape elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from edited_catalogs import Oracle, assert_is
from made_catalogs import build_from_arrays, items_of_leaf, leaf_of_sid

from xgr_kernels.trie import leaf_filter
from xgr_runtime.catalog import CatalogView, build_catalog, resolve_items, verify, verify_file
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.template import prompt_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.catalog import Catalog


def generated(seed: int, items: int, depth: int, codes: int) -> Catalog:
    rng = np.random.default_rng(seed)
    sids = (rng.random((items, depth)) ** 3 * codes).astype(np.int32) + 3 + codes * np.arange(depth)
    return build_from_arrays([str(row) for row in range(items)], sids)


@pytest.fixture(scope="module", params=["instruments", "office"])
def catalog(
    request: pytest.FixtureRequest, test_data: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Catalog:
    if test_data is None:
        return generated(1, 9_922, 4, 256) if request.param == "instruments" else generated(2, 3_459, 3, 64)
    source = test_data / "data" / request.param / "index.json"
    if request.param == "instruments":
        return build_catalog(source, test_data / "models" / "instruments")
    # Office has no checkpoint: a tokenizer of its own tokens stands in.
    index: dict[str, list[str]] = json.loads(source.read_text())
    tokens = ["<unk>", "<bos>", *sorted({token for sid in index.values() for token in sid})]
    folder = tmp_path_factory.mktemp("office")
    write_tokenizer(folder, tokens)
    return build_catalog(source, folder)


def write_tokenizer(folder: Path, tokens: list[str]) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {token: number for number, token in enumerate(tokens)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokens), "bos_token_id": 1}))


def test_every_item_is_on_its_leaf(catalog: Catalog) -> None:
    ids = [catalog.item_id(row) for row in range(catalog.items)]
    assert len(set(ids)) == catalog.items
    assert catalog.item_rows(ids).tolist() == list(range(catalog.items))
    for leaf in range(0, catalog.leaves, 37):
        assert leaf_of_sid(catalog, catalog.sids[leaf].tolist()) == leaf
    counts = np.bincount(catalog.leaf_of_row, minlength=catalog.leaves)
    assert np.array_equal(counts, np.diff(catalog.item_lo))
    assert catalog.collisions() == (int(counts[counts > 1].sum()), int(counts.max()))


def test_survives_the_file(catalog: Catalog, tmp_path: Path) -> None:
    catalog.save(tmp_path / "c.xgr")
    assert verify_file(tmp_path / "c.xgr").version == catalog.version


@pytest.mark.parametrize("denied", [10, 1000], ids=lambda n: f"deny={n}")
def test_deny_lists(catalog: Catalog, denied: int) -> None:
    rng = np.random.default_rng(0)
    deny = {catalog.item_id(int(row)) for row in rng.choice(catalog.items, denied, replace=False)}
    spec = resolve_items(catalog, None, sorted(deny))
    filter = leaf_filter(catalog.leaves, spec.allow_leaves, spec.deny_leaves)
    alive = sum(not deny.issuperset(items_of_leaf(catalog, leaf)) for leaf in range(catalog.leaves))
    assert filter.live(catalog.leaves) == alive


def test_known_figures_and_reference_prompts(test_data: Path | None) -> None:
    """Counts, template and prompts of the instruments data; without it, the same path on generated data."""
    if test_data is None:
        catalog = generated(1, 300, 4, 16)
        tokens, dropped = catalog.prompt_tokens(range(100), 4096)
        assert (tokens, dropped) == (catalog.sids[:100].ravel().tolist(), 0)
        return
    folder = test_data / "data" / "instruments"
    catalog = build_catalog(folder / "index.json", test_data / "models" / "instruments")
    newest = msgspec.structs.replace(catalog.template, max_history_items=64)  # as the references have it
    assert (catalog.items, catalog.leaves, catalog.collisions()) == (9_922, 9_897, (48, 3))
    for line in (folder / "reference_w50.jsonl").read_text().splitlines():
        reference = json.loads(line)
        leaves = catalog.leaves_of_items(reference["history"])
        prompt, dropped = prompt_tokens(newest, catalog.sids, leaves, 8192)
        assert prompt == reference["prompt_ids"]
        assert dropped == max(0, len(reference["history"]) - 64)
        assert all(leaf_of_sid(catalog, sid) is not None for sid, _ in reference["beams"])


def test_edits_are_those_of_a_dict_of_its_items(catalog: Catalog) -> None:
    """Items change places, go, come and are hidden; compacted, it is what is built of what is left."""
    oracle = Oracle((), vocab_size=catalog.vocab_size)
    names, sids = [catalog.item_id(row) for row in range(catalog.items)], catalog.sids[catalog.leaf_of_row]
    records = [ItemRecord(name, tuple(sid)) for name, sid in zip(names, sids.tolist(), strict=True)]
    oracle.apply(EditBatch(put=tuple(records)))
    view, rng = CatalogView(catalog), np.random.default_rng(0)
    for number in range(3):
        some = rng.choice(sorted(oracle.items), 400, replace=False).tolist()
        tokens = [rng.choice(catalog.sids[:, level], 200).tolist() for level in range(catalog.depth)]
        fresh = [*zip(*tokens, strict=True)]
        batch = EditBatch(
            put=tuple(
                ItemRecord(name, sid, f"Item {name}")
                for name, sid in zip(
                    [f"new {number} {n}" for n in range(100)] + some[:100], fresh, strict=True
                )
            ),
            remove=tuple(some[100:200]),
            hide=tuple(some[200:300]),
            rank=tuple((name, float(n)) for n, name in enumerate(some[300:])),
        )
        view = edited(view, batch)
        oracle.apply(batch)
        assert_is(view, oracle)
    compact = edited(view, EditBatch(compact=True)).catalog
    rebuilt = replace(oracle.built().content, templates=catalog.templates, scoring=catalog.scoring)
    assert compact.version == rebuilt.version() and view.leaves > compact.leaves > catalog.leaves
    verify(compact)
