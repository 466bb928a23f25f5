"""What answers list and tell of items, by real processes: against plain answers of the same deployment."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from items import Items, read_tokenizer
from sameness import assert_identical

from xgr_runtime.client import XgrClient
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.answers import Answer

Row = dict[str, Any]
BRANDS = ("Ash", "Birch", "Cedar", "Elm")


@pytest.fixture(scope="module")
def goods(items: Items) -> dict[str, Row]:
    draw = random.Random(5)
    rows = {item: {"brand": draw.choice(BRANDS), "n": at} for at, item in enumerate(sorted(items.sids))}
    return {item: row if draw.random() < 0.8 else {"n": row["n"]} for item, row in rows.items()}


@pytest.fixture(scope="module")
def shop(
    checkpoint: Path, items: Items, goods: dict[str, Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XgrClient]:
    """A deployment in which every fifth item has the SID of the one before it, too."""
    source = tmp_path_factory.mktemp("shop") / "catalog.jsonl"
    spell = read_tokenizer(checkpoint).id_to_token
    names, lines = sorted(items.sids), []
    for at, item in enumerate(names):
        sid = items.sids[names[at - 1] if at % 5 == 4 else item]
        told = {"title": f"No. {at}", "attributes": goods[item], "popularity": -at}
        lines.append({"item": item, "sid": [spell(token) for token in sid], **told})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Cluster(checkpoint, source) as cluster, cluster.client() as client:
        yield client


def walked(answer: Answer, results: int, at_most: int, goods: dict[str, Row]) -> list[list[str]]:
    counts: Counter[str] = Counter()
    found: list[list[str]] = []
    for result in answer.meta_info.beam_results:
        taken = []
        for item in result.items:
            brand = goods[item].get("brand")
            if brand is None or counts[brand] < at_most:
                taken.append(item)
                counts.update([brand] if brand else [])
        found += [taken] if taken else []
        if len(found) == results:
            break
    return found


def test_diversity_is_exact_and_knows_when_width_is_enough(
    shop: XgrClient, goods: dict[str, Row], prompts: list[list[int]]
) -> None:
    said: Counter[str] = Counter()
    for prompt in prompts[:6]:
        for width, n, at_most in ((4, 3, 1), (30, 2, 1), (60, 6, 3)):
            rule: Any = {"attribute": "brand", "at_most": at_most}
            answer = shop.generate(input_ids=prompt, beam_width=width, n=n, diversity=rule)
            plain = shop.generate(input_ids=prompt, beam_width=width)
            listed = [result.items for result in answer.meta_info.beam_results]
            assert listed == walked(plain, n, at_most, goods)
            facts = answer.meta_info.diversity
            assert facts is not None and facts.beams == len(plain.meta_info.beam_results)
            said[facts.wider_changes] += 1
            if facts.wider_changes == "no":
                wider = shop.generate(input_ids=prompt, beam_width=2 * width, n=n, diversity=rule)
                assert_identical(answer, wider)
    assert said["no"] and said["unknown"]


def test_a_filter_that_leaves_few_settles_everything(
    shop: XgrClient, goods: dict[str, Row], prompts: list[list[int]]
) -> None:
    rule: Any = {"attribute": "brand", "at_most": 1}
    answer = shop.generate(input_ids=prompts[0], beam_width=40, diversity=rule, where="n < 20")
    facts = answer.meta_info.diversity
    assert facts is not None and facts.wider_changes == "no" and facts.beams < 20
    listed = [item for result in answer.meta_info.beam_results for item in result.items]
    assert max(Counter(goods[item]["brand"] for item in listed if "brand" in goods[item]).values()) == 1
    assert {item for item in goods if goods[item]["n"] < 20 and "brand" not in goods[item]} <= set(listed)


def test_titles_and_attributes(shop: XgrClient, goods: dict[str, Row], prompts: list[list[int]]) -> None:
    answer = shop.generate(input_ids=prompts[1], beam_width=20, title=True, attributes=["n", "brand"])
    for result in answer.meta_info.beam_results:
        assert result.item_info is not None
        for item, info in zip(result.items, result.item_info, strict=True):
            own = goods[item]
            assert info.title == f"No. {own['n']}"
            assert info.attributes == {"n": own["n"], "brand": own.get("brand")}


def test_items_of_a_sid(shop: XgrClient, prompts: list[list[int]]) -> None:
    every = shop.generate(input_ids=prompts[2], beam_width=40)
    best = shop.generate(input_ids=prompts[2], beam_width=40, items_per_sid="best")
    shared = [result.items for result in every.meta_info.beam_results]
    assert max(map(len, shared)) > 1
    assert [result.items for result in best.meta_info.beam_results] == [own[:1] for own in shared]
    drawn = set()
    for seed in range(8):
        samples = [
            shop.generate(input_ids=prompts[2], beam_width=40, items_per_sid={"sample": seed})
            for _ in range(2)
        ]
        one, other = ([result.items for result in answer.meta_info.beam_results] for answer in samples)
        assert one == other
        assert all(len(own) == 1 and own[0] in of for own, of in zip(one, shared, strict=True))
        drawn.add(str(one))
    assert len(drawn) > 1


def test_what_the_catalog_lacks(shop: XgrClient, users: list[list[str]]) -> None:
    answer = shop.generate(history=[*users[0], "gone"], beam_width=2)
    assert answer.meta_info.unknown_items.history == 1
    with pytest.raises(BadRequest, match="names 'prise', which is no attribute") as refused:
        shop.generate(history=users[0], beam_width=2, attributes=["prise"])
    assert refused.value.param == "return.attributes"
