"""Parametrisation by pairs: no two values miss each other, in far fewer rows than a product has."""

from itertools import combinations, product

import pytest
from pairs import by_pairs, rows_of_pairs


@pytest.mark.parametrize("sizes", [(2, 3), (8, 6, 3, 2), (4, 4, 2, 2, 2), (1, 1, 1), (5, 1, 2)], ids=str)
def test_every_two_values_meet(sizes: tuple[int, ...]) -> None:
    rows = rows_of_pairs(sizes)
    for a, b in combinations(range(len(sizes)), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(range(sizes[a]), range(sizes[b])))
    assert len(set(rows)) == len(rows) and rows == rows_of_pairs(sizes)


def test_it_is_far_less_than_the_product() -> None:
    assert len(rows_of_pairs((8, 6, 3, 2))) <= 50  # of 288; 48 are the pairs of the two longest
    assert len(rows_of_pairs((4, 4, 2, 2, 2))) <= 20  # of 128


def test_names_and_ids_are_those_of_parametrize() -> None:
    mark = by_pairs({"Hq, Hkv": [(2, 1), (4, 2)], "L": [0, 5]}).mark
    names, cases = mark.args
    assert names == "Hq, Hkv,L"
    assert {case.values for case in cases} == {(2, 1, 0), (2, 1, 5), (4, 2, 0), (4, 2, 5)}
    assert {case.id for case in cases} == {"(2, 1)-L=0", "(2, 1)-L=5", "(4, 2)-L=0", "(4, 2)-L=5"}
