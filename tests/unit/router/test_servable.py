"""Which catalogs are refused before anything is sent, and which items are named."""

from __future__ import annotations

import numpy as np
import pytest
from made_catalogs import build_from_arrays
from tokenizers import Tokenizer, models

from router.catalogs.servable import Servable
from xgr_runtime.catalog import Catalog, PromptTemplate
from xgr_runtime.catalog.scoring import Forced, Scoring
from xgr_runtime.errors import CatalogError
from xgr_runtime.prompts import Prompts

LEVELS = "abc"
WORDS = ["x", "y", *(f"<{level}_{code}>" for level in LEVELS for code in range(8))]
TOKENS = {word: number for number, word in enumerate(WORDS)}
TOKENIZER = Tokenizer(models.WordLevel(TOKENS, unk_token="x"))


def catalog(sids: list[list[int]], scoring: Scoring | None = None) -> Catalog:
    names = [f"item-{row}" for row in range(len(sids))]
    return build_from_arrays(names, np.array(sids, np.int32), template=PromptTemplate(), scoring=scoring)


def sid(*codes: int, levels: str = LEVELS) -> list[int]:
    return [TOKENS[f"<{level}_{code}>"] for level, code in zip(levels, codes, strict=True)]


@pytest.fixture
def servable() -> Servable:
    first = catalog([sid(1, 2, 3), sid(1, 3, 3), sid(2, 0, 0)]).for_vocabulary(len(WORDS))
    return Servable(first, TOKENIZER, Prompts.read(TOKENIZER, None))


def test_other_codes_of_the_same_levels_are_served(servable: Servable) -> None:
    checked = servable.checked(catalog([sid(7, 7, 7), sid(0, 0, 0)]))
    assert checked.vocab_size == len(WORDS) and checked.items == 2


def test_tokens_beyond_the_vocabulary_name_their_items(servable: Servable) -> None:
    bad = [[*sid(1, 2, 3)[:2], len(WORDS) + n] for n in range(5)]
    with pytest.raises(
        CatalogError, match="the items 'item-1', 'item-2', 'item-3' and those of 2 further SIDs"
    ):
        servable.checked(catalog([sid(1, 2, 3), *bad]))


def test_levels_in_another_order_name_their_items(servable: Servable) -> None:
    swapped = sid(1, 2, 3, levels="bac")
    with pytest.raises(CatalogError, match=r"the items 'item-1' have the token '<b_1>' in level 0.*'<a_#>'"):
        servable.checked(catalog([sid(1, 2, 3), swapped]))


def test_another_depth_is_refused(servable: Servable) -> None:
    with pytest.raises(CatalogError, match="SIDs have 2 tokens and searches emit 2"):
        servable.checked(catalog([sid(1, 2, levels="ab")]))
    with pytest.raises(CatalogError, match="searches emit 4"):
        servable.checked(catalog([sid(1, 2, 3)], Scoring(tail=(Forced(1),))))
