"""Tokens that were added to a vocabulary: where files name them, and how a tokenizer gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from xgr_runtime.errors import ModelError
from xgr_runtime.files import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

SETTINGS = "tokenizer_config.json"
BY_TEXT = "added_tokens.json"
NAMED = "special_tokens_map.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
MOST_UNNAMED = 1 << 16  # ids between those that the files name
_REMEDY = "save the tokenizer of training again, all its files"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Added:
    """A token that some file names; `number` is its id, None where only its text is said."""

    token: AddedToken
    number: int | None
    file: Path

    @property
    def text(self) -> str:
        """How it is spelt."""
        return str(self.token.content)


def read_added(folder: Path) -> list[Added]:
    """Every token that a file beside the vocabulary names, by id, those without last. Raises ModelError."""
    settings, named = read_object(folder / SETTINGS, ModelError), read_object(folder / NAMED, ModelError)
    found: dict[str, Added] = {}
    for one in (
        *_by_number(folder / SETTINGS, settings),
        *_by_text(folder / BY_TEXT),
        *_by_name(folder / SETTINGS, settings),
        *_by_name(folder / NAMED, named),
    ):
        before = found.setdefault(one.text, one)
        if one.number is not None and before.number is not None and one.number != before.number:
            raise ModelError(
                f"{one.file} says that {one.text!r:.80} is token {one.number}, {before.file.name} says "
                f"{before.number}: keep the one that training used"
            )
    _check_numbers(found.values())
    return sorted(found.values(), key=lambda one: (one.number is None, one.number or 0))


def add_missing(tokenizer: Tokenizer, added: Iterable[Added], raw: bool) -> None:
    """Give the tokenizer what it lacks of these. Raises ModelError where a token would get another id.

    `raw`: the tokenizer was put together of a vocabulary without added tokens. They are then found in a
    text as it is written, and ids that no file names stay unused.
    """
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    lacking = [
        one
        for one in added
        if one.text not in there and (one.number is not None or tokenizer.token_to_id(one.text) is not None)
    ]  # what is named without an id and in no vocabulary, nothing ever encodes to
    tokenizer.add_tokens(_filled(tokenizer, lacking) if raw else [one.token for one in lacking])
    for one in added:
        _check(tokenizer, one)


def token_text(value: Any) -> str | None:
    """A token as the settings write one: its text, or an object that holds it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _by_number(path: Path, settings: Mapping[str, Any]) -> Iterator[Added]:
    for number, value in _object(path, settings, "added_tokens_decoder").items():
        text = token_text(value)
        if text is None or not number.isdecimal():
            raise ModelError(f"{path}: added_tokens_decoder holds {number!r:.40}: {value!r:.80}: correct it")
        flags = {name: value.get(name) is True for name in _FLAGS} if isinstance(value, dict) else {}
        yield Added(AddedToken(text, **flags), int(number), path)


def _by_text(path: Path) -> Iterator[Added]:
    for text, number in read_object(path, ModelError).items():
        if type(number) is not int or not text:
            raise ModelError(f"{path}: {text!r:.80} has the id {number!r:.40}: it must be a whole number")
        yield Added(AddedToken(text, normalized=False), number, path)


def _by_name(path: Path, settings: Mapping[str, Any]) -> Iterator[Added]:
    values = [settings.get(name) for name in NAMES]
    for name in LISTS:
        value = settings.get(name)
        values += value if isinstance(value, list) else []
    for text in filter(None, map(token_text, values)):
        yield Added(AddedToken(text, normalized=False, special=True), None, path)


def _object(path: Path, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{path}: {name} is {value!r:.80}: it must be an object")
    return value


def _check_numbers(added: Iterable[Added]) -> None:
    texts: dict[int, Added] = {}
    for one in added:
        if one.number is None:
            continue
        other = texts.setdefault(one.number, one)
        if other is not one:
            raise ModelError(
                f"{one.file} says that {one.text!r:.80} is token {one.number}, {other.file.name} says that "
                f"{other.text!r:.80} is: keep the one that training used"
            )


def _check(tokenizer: Tokenizer, one: Added) -> None:
    number = tokenizer.token_to_id(one.text)
    if one.number is not None and number != one.number:
        raise ModelError(
            f"{one.file} says that {one.text!r:.80} is token {one.number}, by the vocabulary beside it "
            f"that is {number}: {_REMEDY}"
        )


def _filled(tokenizer: Tokenizer, lacking: Iterable[Added]) -> list[AddedToken]:
    """These tokens, found in a text as it is written, and stand-ins for the ids between them."""
    tokens, following = [], tokenizer.get_vocab_size(with_added_tokens=True)
    for one in lacking:
        if one.number is not None and tokenizer.token_to_id(one.text) is None:
            if one.number - following > MOST_UNNAMED:
                raise ModelError(
                    f"{one.file} says that {one.text!r:.80} is token {one.number}, far beyond the vocabulary "
                    f"beside it: {_REMEDY}"
                )
            tokens += [_stand_in(number) for number in range(following, one.number)]
            following = max(following, one.number) + 1
        tokens.append(_as_written(one.token))
    return tokens


def _stand_in(number: int) -> AddedToken:
    """In letters for private use, which no text holds."""
    return AddedToken(f"\U0010fffd{number}\U0010fffd", normalized=False, special=True)


def _as_written(token: AddedToken) -> AddedToken:
    flags = {name: getattr(token, name) for name in _FLAGS if name != "normalized"}
    return AddedToken(token.content, normalized=False, **flags)
