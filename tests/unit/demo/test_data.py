"""The generated shop: reproducible, shaped as asked, skewed, and learnable."""

from collections import Counter

import numpy as np
import pytest

from xgr_runtime.cli.demo import words
from xgr_runtime.cli.demo.data import DEPTH, LONGEST, SHORTEST, Shop, ShopSettings, generate
from xgr_runtime.errors import ConfigError

SETTINGS = ShopSettings(items=2000, users=1500)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return generate(SETTINGS)


def test_same_settings_give_the_same_shop(shop: Shop) -> None:
    again = generate(SETTINGS)
    np.testing.assert_array_equal(shop.codes, again.codes)
    np.testing.assert_array_equal(np.concatenate(shop.histories), np.concatenate(again.histories))
    np.testing.assert_array_equal(shop.next_items, again.next_items)
    assert shop.titles == again.titles


def test_another_seed_gives_another_shop(shop: Shop) -> None:
    other = generate(ShopSettings(items=2000, users=1500, seed=8))
    assert not np.array_equal(shop.codes, other.codes)


@pytest.mark.parametrize(
    ("items", "codebook"), [(100, 16), (500, 64), (2000, 256), (20_000, 256)], ids=lambda value: str(value)
)
def test_has_three_levels_within_the_codebook_in_ascending_order(items: int, codebook: int) -> None:
    codes = generate(ShopSettings(items=items, users=10, codebook=codebook)).codes
    assert codes.shape == (items, DEPTH)
    assert codes.min() >= 0
    assert codes.max() < codebook
    keys = [tuple(row) for row in codes.tolist()]
    assert keys == sorted(keys)


def test_a_few_items_share_a_sid(shop: Shop) -> None:
    distinct = len(np.unique(shop.codes, axis=0))
    assert len(shop.codes) - distinct == int(2000 * SETTINGS.shared_sids)


def test_popularity_is_skewed_and_counts_the_histories(shop: Shop) -> None:
    assert shop.popularity.sum() == sum(len(history) for history in shop.histories)
    best = np.sort(shop.popularity)[::-1]
    # A flat shop would give the top tenth a share of 0.1; real catalogs show 0.43 to 0.51.
    assert best[:200].sum() > 0.4 * best.sum()


def test_histories_have_the_promised_lengths(shop: Shop) -> None:
    lengths = {len(history) + 1 for history in shop.histories}
    assert lengths == set(range(SHORTEST, LONGEST + 1))


def test_the_next_product_follows_from_the_last_one(shop: Shop) -> None:
    last = shop.codes[[history[-1] for history in shop.histories], 0]
    following = shop.codes[shop.next_items, 0]
    related = following // len(words.DEPARTMENTS[0]) == last // len(words.DEPARTMENTS[0])
    # Staying (0.45) and complements (0.30) remain in the department; tastes may fall into it too.
    assert related.mean() > 0.7


def test_users_rarely_buy_the_same_thing_twice(shop: Shop) -> None:
    repeats = [item in history for history, item in zip(shop.histories, shop.next_items, strict=True)]
    assert np.mean(repeats) < 0.1


def test_titles_name_the_product_and_tell_all_items_apart(shop: Shop) -> None:
    assert Counter(shop.titles).most_common(1)[0][1] == 1
    for row, title in zip(shop.codes.tolist(), shop.titles, strict=True):
        assert words.PRODUCTS[row[0]] in title


def test_every_product_has_its_own_name_and_every_department_the_same_size() -> None:
    assert len(set(words.PRODUCTS)) == 256
    assert {len(department) for department in words.DEPARTMENTS} == {8}


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"items": 99}, "--items"),
        ({"users": 9}, "--users"),
        ({"codebook": 8}, "codebook"),
        ({"codebook": 257}, "codebook"),
    ],
    ids=["items=99", "users=9", "codebook=8", "codebook=257"],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, int], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        ShopSettings(**settings)
