"""Pieces of a prompt's text have the tokens of the whole, or are not used."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_catalogs import build_from_arrays
from made_tokenizers import SIDS, byte_pairs, pieces, saved, words
from tokenizers import AddedToken, normalizers

from xgr_runtime.catalog.template import TextTemplate
from xgr_runtime.errors import CatalogError
from xgr_runtime.prompts import Prompts
from xgr_runtime.tokenizer import around, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

KINDS: dict[str, Callable[[Path], Any]] = {
    "qwen": lambda folder: byte_pairs(folder, normalized=False),
    "qwen-normalized": lambda folder: byte_pairs(folder, normalized=True),
    "qwen-special": lambda folder: byte_pairs(folder, normalized=False, special=True),
    "llama": lambda folder: pieces(folder, legacy=True),
    "llama-first": lambda folder: pieces(folder, legacy=False),
    "words": words,
}
# Words, blanks, signs that a SID has, parts of SIDs, marks that join the letter before them.
BITS = [
    "the",
    "user",
    " ",
    "  ",
    "\n",
    ",",
    ".",
    "<",
    ">",
    "<a_",
    "_1>",
    "a",
    "ü",
    "u\u0308",
    "\u0338",
    "12",
    "你",
    "<|end|>",
]
TEXT = st.lists(st.sampled_from([*BITS, "<a_3>"]), max_size=6).map("".join)
ITEMS = {str(n): [SIDS[n % 12], SIDS[12 + (5 * n) % 12]] for n in range(12)}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](made)
    return made


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def prompts_of(folder: Path, template: TextTemplate, titles: list[str]) -> tuple[Catalog, Prompts, Tokenizer]:
    tokenizer = known(folder)
    sids = [[tokenizer.token_to_id(token) or 0 for token in sid] for sid in ITEMS.values()]
    catalog = build_from_arrays(list(ITEMS), sids, titles=titles, template=template)
    return catalog, Prompts.read(tokenizer, folder), tokenizer


@lru_cache
def known(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    parts=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT),
    titles=st.lists(TEXT, min_size=12, max_size=12),
    history=st.lists(st.integers(0, 11), max_size=6),
    special=st.booleans(),
)
def test_pieces_are_the_whole(
    parts: tuple[str, ...], titles: list[str], history: list[int], special: bool, folder: Path
) -> None:
    before, behind, first, last = map(escaped, parts[:4])
    titles = [title or "the" for title in titles]
    template = TextTemplate(
        f"the{before}{{history}}{behind}", f"{first}{{sid}}{last}{{title}}", parts[4], special_tokens=special
    )
    catalog, prompts, tokenizer = prompts_of(folder, template, titles)
    if not knows(tokenizer, f"the{parts[0]}{parts[1]}"):
        with pytest.raises(CatalogError, match="the tokenizer has no token for a part of it"):
            prompts.check(catalog)
        return
    assert prompts._view(catalog)._pieces is not None
    leaves = catalog.leaves_of_items([str(n) for n in history])
    found = prompts.of_history(catalog, None, {"": leaves}, {}, 4096)
    shown = parts[4].join(parts[2] + "".join(ITEMS[str(n)]) + parts[3] + titles[n] for n in history)
    text = f"the{parts[0]}{shown}{parts[1]}"
    assert found.text == text
    assert found.tokens.tolist() == tokenizer.encode(text, add_special_tokens=special).ids


def knows(tokenizer: Tokenizer, text: str) -> bool:
    """A template of words that the tokenizer does not know is refused."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    return unknown is None or tokenizer.token_to_id(unknown) not in tokenizer.encode(text).ids


def plain(folder: Path, change: Callable[[Tokenizer], Any]) -> tuple[bool, bool]:
    """Whether pieces are used with a tokenizer so changed, and whether prompts are those of the whole."""
    tokenizer = byte_pairs(folder, normalized=False)
    change(tokenizer)
    saved(folder, tokenizer)
    template = TextTemplate("the user > {history} , 1><b_3", separator=" <a_")
    catalog, prompts, tokenizer = prompts_of(folder, template, ["x"] * 12)
    view = prompts._view(catalog)
    leaves = np.arange(6)
    found = prompts.of_history(catalog, None, {"": leaves}, {}, 4096)
    begin, end = around(tokenizer)
    whole = tokenizer.encode(found.text, add_special_tokens=False).ids
    return view._pieces is not None, found.tokens.tolist() == [*begin, *whole, *end]


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("> <", normalized=False),
        AddedToken(" <a", normalized=False),
        AddedToken("<b_5><a_2>", normalized=False),
        AddedToken("user <a_1> and", normalized=False),
        AddedToken("a_", normalized=False),
        AddedToken("<a", normalized=False),
        AddedToken("user", normalized=False, single_word=True),
    ],
    ids=lambda token: token.content,
)
def test_tokens_that_may_overlap_sids_are_asked_whole(token: AddedToken, tmp_path: Path) -> None:
    def add(tokenizer: Tokenizer) -> None:
        tokenizer.add_tokens([token])

    if token.content in ("a_", "<a"):  # SID tokens come first in the text, so these never win there
        assert plain(tmp_path, add)[0] is False
    else:
        assert plain(tmp_path, add) == (False, True)


def test_tokens_that_stand_beside_sids_are_no_matter(tmp_path: Path) -> None:
    marks = [AddedToken("<|a|>", normalized=False), AddedToken("</a_>", rstrip=True, normalized=False)]
    assert plain(tmp_path, lambda tokenizer: tokenizer.add_tokens(marks)) == (True, True)


def test_a_normaliser_that_changes_texts_is_asked_whole(tmp_path: Path) -> None:
    tokenizer = byte_pairs(tmp_path, normalized=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("<a_1>", "<a_2>")])
    saved(tmp_path, tokenizer)
    catalog, prompts, _ = prompts_of(tmp_path, TextTemplate("{history}"), ["x"] * 12)
    with pytest.raises(CatalogError, match="reads the SID"):
        prompts.check(catalog)


def test_a_disagreement_is_said_and_whole_texts_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_pairs(tmp_path, normalized=False)
    catalog, prompts, tokenizer = prompts_of(tmp_path, TextTemplate("the {history} user"), ["x"] * 12)
    monkeypatch.setattr("xgr_runtime.prompts.pieces.Pieces._encoded", lambda *_: (1, 2))
    with caplog.at_level("INFO"):
        prompts.check(catalog)
    assert "tokenised whole" in caplog.text
    found = prompts.of_history(catalog, None, {"": np.arange(3)}, {}, 99)
    assert found.tokens.tolist() == tokenizer.encode(found.text).ids
