"""A text that can be no prompt is refused before the tokenizer has gone through it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece

from router.query.prompts import USUAL_TOKEN, TextPrompts
from xgr_runtime.errors import BadRequest
from xgr_runtime.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 10  # tokens


def text_prompts(tokenizer: Any) -> TextPrompts:
    return TextPrompts(tokenizer, Prompts.read(tokenizer, None).bytes_per_token)


class Counting:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch(self, texts: Sequence[str]) -> Any:
        self.read += sum(map(len, texts))
        return self._tokenizer.encode_batch(list(texts))

    def encode_batch_fast(self, texts: Sequence[str]) -> Any:
        self.read += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(list(texts))


def letters() -> Tokenizer:
    """A token per byte, but for a long one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate([*alphabet, "ab" * 40])}, []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"?": 0, "a": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    "text", ["a" * 8_000_000, "é" * 4_000_000, "\U0001f600" * 2_000_000, "a " * 4_000_000]
)
@pytest.mark.parametrize("make", [letters, words])
def test_megabytes_are_refused_unread(make: Any, text: str) -> None:
    tokenizer = Counting(make())
    with pytest.raises(BadRequest, match="far too many tokens, the limit is 10") as error:
        text_prompts(tokenizer).tokens(text, MOST)  # type: ignore[arg-type]
    assert error.value.param == "text"
    assert tokenizer.read == 0


@pytest.mark.parametrize("letter", ["a", "é", "1", " \n", "e\u0301"])
def test_of_a_text_that_is_too_long_only_the_beginning_is_read(letter: str) -> None:
    most = 1000
    text = letter * (most * 64 // len(letter.encode()))
    tokenizer = Counting(letters())
    with pytest.raises(BadRequest, match="far too many tokens, the limit is 1000"):
        text_prompts(tokenizer).tokens(text, most)  # type: ignore[arg-type]
    assert tokenizer.read <= USUAL_TOKEN * most < len(text)


@pytest.mark.parametrize("text", [" " * 600 + "a", "a" + " \n" * 300])
def test_blanks_that_a_tokenizer_drops_do_not_count(text: str) -> None:
    assert text_prompts(words()).tokens(text, MOST).tolist() == [1]


def test_the_exact_count_is_said_where_it_is_known() -> None:
    with pytest.raises(BadRequest, match="a prompt of 11 tokens, the limit is 10"):
        text_prompts(letters()).tokens("a" * 11, MOST)


@pytest.mark.parametrize("count", [1, MOST, USUAL_TOKEN * MOST + 1, 600])
def test_what_fits_is_never_refused(count: int) -> None:
    text = "a" * count
    assert text_prompts(letters()).tokens(text, max(count, MOST)).tolist() == letters().encode(text).ids


def test_a_beginning_that_ends_in_a_long_word_is_held_against_nobody() -> None:
    """Its last word, cut off, may have more tokens than the whole one."""
    tokenizer = Tokenizer(
        WordPiece({"?": 0, "##a": 1, "a": 2, "aa": 3}, unk_token="?", max_input_chars_per_word=200)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    begins = " " * (USUAL_TOKEN * MOST - 150)
    assert len(tokenizer.encode(begins + "a" * 150)) > MOST
    with pytest.raises(BadRequest, match="does not know"):  # all of it was read
        text_prompts(tokenizer).tokens(begins + "a" * 400, MOST)
