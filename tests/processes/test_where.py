"""Conditions over attributes: an answer is that of a catalog which holds the matching items alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from items import Items, read_tokenizer
from oracle import Oracle
from sameness import assert_items, assert_same

from xgr_runtime.client import XgrClient
from xgr_runtime.errors import BadRequest

Row = dict[str, Any]


@pytest.fixture(scope="module")
def goods(items: Items) -> dict[str, Row]:
    """Attributes of every item; some lack some."""
    draw = random.Random(3)
    found: dict[str, Row] = {}
    for item in sorted(items.sids):
        row = {
            "price": round(draw.uniform(1, 100), 2),
            "brand": draw.choice(["Ash", "Birch", "Cedar"]),
            "in_stock": draw.random() < 0.7,
            "released": f"2026-{draw.randint(1, 12):02}-15",
            "tags": draw.sample(["new", "sale", "eco"], draw.randint(0, 3)),
        }
        found[item] = {name: value for name, value in row.items() if draw.random() < 0.85}
    return found


@pytest.fixture(scope="module")
def shop(
    checkpoint: Path, items: Items, goods: dict[str, Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XgrClient]:
    """A client of a deployment whose catalog has those attributes."""
    source = tmp_path_factory.mktemp("shop") / "catalog.jsonl"
    spell = read_tokenizer(checkpoint).id_to_token
    lines = [
        {"item": item, "sid": [spell(token) for token in sid], "attributes": goods[item]}
        for item, sid in items.sids.items()
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Cluster(checkpoint, source) as cluster, cluster.client() as client:
        yield client


CASES: dict[str, Callable[[Row], bool]] = {
    "in_stock": lambda row: row.get("in_stock", False),
    "NOT in_stock OR in_stock IS NULL": lambda row: not row.get("in_stock", False),
    "in_stock AND brand IN ('Ash', 'Birch') AND price < 50": lambda row: (
        row.get("in_stock", False) and row.get("brand") in ("Ash", "Birch") and row.get("price", 99) < 50
    ),
    "released >= TIMESTAMP '2026-06-01' AND brand LIKE '_i%'": lambda row: (
        row.get("released", "") >= "2026-06-01" and row.get("brand") == "Birch"
    ),
    "'sale' = ANY(tags) AND NOT array_contains(tags, 'eco')": lambda row: (
        "sale" in row.get("tags", []) and "eco" not in row.get("tags", [])
    ),
    "price > 1e6": lambda row: False,
}


@pytest.mark.parametrize("sql", CASES)
def test_equals_a_smaller_catalog(
    shop: XgrClient, oracle: Oracle, items: Items, goods: dict[str, Row], prompts: list[list[int]], sql: str
) -> None:
    draw = random.Random(sql)
    names = sorted(items.sids)
    matching = items.only({item for item in names if CASES[sql](goods[item])})
    for allow, denied in ((None, 0), (None, 150), (200, 0), (200, 50)):
        allowed = None if allow is None else draw.sample(names, allow)
        deny = draw.sample(names, denied)
        left = (matching if allowed is None else matching.only(set(allowed))).without(set(deny))
        answer = shop.generate(input_ids=prompts[4], beam_width=12, where=sql, allow=allowed, deny=deny)
        assert_same(answer, oracle.beams(prompts[4], left, 12) if left.sids else [])
        assert_items(answer, left)


def test_with_the_history_excluded(
    shop: XgrClient,
    oracle: Oracle,
    items: Items,
    goods: dict[str, Row],
    users: list[list[str]],
    prompts: list[list[int]],
) -> None:
    matching = items.only({item for item, row in goods.items() if row.get("in_stock", False)})
    best = shop.generate(history=users[7], beam_width=6, where="in_stock").meta_info.beam_results
    deny = [best[0].items[0], best[1].items[0]]
    left = matching.without({*users[7], *deny})
    answer = shop.generate(history=users[7], beam_width=25, where="in_stock", deny=deny, exclude_history=True)
    assert_same(answer, oracle.beams(prompts[7], left, 25))
    assert_items(answer, left)


def test_an_unknown_column_is_refused_by_its_position(shop: XgrClient, prompts: list[list[int]]) -> None:
    with pytest.raises(
        BadRequest, match=r"at character 14: there is no column 'prise': did you mean 'price'"
    ) as refused:
        shop.generate(input_ids=prompts[0], where="in_stock AND prise < 1")
    assert refused.value.param == "filters.where"
