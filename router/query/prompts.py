"""From text to tokens: what could not be a prompt is refused before a tokenizer spends time and memory on it.

A tokenizer takes about a microsecond and a few hundred bytes for a token, so megabytes of text would hold a
thread for seconds and gigabytes of memory.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from xgr_runtime.errors import BadRequest

UNLIMITED = (1 << 31) - 1
USUAL_TOKEN = 16  # characters per token that few texts have on average
LIMIT_FROM = "the limit comes from the model's positions, --kv-bytes and --max-prompt-tokens"
LAST_WORD = 256  # tokens that the end of a text, cut off in a word, may have beyond those of the whole


class TextPrompts:
    """One tokenizer, asked for no more than a prompt may hold."""

    def __init__(self, tokenizer: Tokenizer, bytes_per_token: int) -> None:
        """`bytes_per_token`: that a text has at most."""
        self._tokenizer = tokenizer
        self._bytes_per_token = bytes_per_token
        self._unknown = unknown_token(tokenizer)

    def tokens(self, text: str, most: int) -> NDArray[np.int32]:
        """Token ids [L] of `text`, by the tokenizer. Raises `BadRequest`, soon if there are too many."""
        if not text:
            raise BadRequest("text is empty: send at least one token", "text")
        self._check_bytes(text, most, "text")
        self._check_beginning(text, most, "text")
        encoding = self._encode(text, offsets=self._unknown is not None)
        check_length(len(encoding), "text", most)
        ids = encoding.ids
        if self._unknown is not None and self._unknown[0] in ids:
            self._refuse_unknown(text, ids, encoding.offsets, *self._unknown)
        return np.array(ids, np.int32)

    def check_size(self, texts: Iterable[str], most: int, field: str) -> str:
        """Raises `BadRequest`, soon, where `texts` could not all stand in one prompt of `most` tokens.

        They come back joined.
        """
        joined = "".join(texts)
        self._check_bytes(joined, most, field)
        self._check_beginning(joined, most, field)
        return joined

    def check_room(self, texts: Iterable[str], most: int, field: str) -> None:
        """The same, to the token: who puts texts beside a history tries fewer and fewer items with them."""
        joined = self.check_size(texts, most, field)
        if len(joined) > most and len(self._encode(joined, offsets=False)) > most + LAST_WORD:
            raise _too_long(most, field)

    def _check_bytes(self, text: str, most: int, field: str) -> None:
        """A token stands for so many bytes at most."""
        allowed = most * self._bytes_per_token
        if len(text) > allowed or (4 * len(text) > allowed and len(text.encode(errors="replace")) > allowed):
            raise _too_long(most, field)

    def _check_beginning(self, text: str, most: int, field: str) -> None:
        """A text that is long for the limit is tried beginning first, four times as much of it each time."""
        size = most * USUAL_TOKEN
        while size < len(text):
            if len(self._encode(text[:size], offsets=False)) > most + LAST_WORD:
                raise _too_long(most, field)
            size *= 4

    def _encode(self, text: str, offsets: bool) -> Encoding:
        """Other threads run meanwhile, which they do not during `encode`."""
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        (encoding,) = encode([text])
        return encoding

    def _refuse_unknown(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], unknown: int, spelling: str
    ) -> None:
        for token, (first, last) in zip(ids, offsets, strict=True):
            if token == unknown and text[first:last] != spelling:
                raise BadRequest(
                    f"text holds {shorten(text[first:last])} at character {first}, "
                    "which the tokenizer does not know: correct it",
                    "text",
                )


def _too_long(most: int, field: str) -> BadRequest:
    what = "text gives" if field == "text" else f"{field} give"
    problem = f"{what} a prompt of far too many tokens, the limit is {most}: shorten it ({LIMIT_FROM})"
    return BadRequest(problem, field)


def check_length(count: int, name: str, most: int) -> None:
    """Raises `BadRequest` unless a prompt of field `name` may have so many tokens."""
    if not count:
        raise BadRequest(f"{name} gives an empty prompt: it needs at least one token", name)
    if count > most:
        raise BadRequest(
            f"{name} gives a prompt of {count} tokens, the limit is {most}: shorten it ({LIMIT_FROM})", name
        )


def shorten(text: str) -> str:
    """`text` quoted, at most about 80 characters of it."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def unknown_token(tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Id and spelling of the token that stands for whatever the tokenizer does not know."""
    spelling = getattr(tokenizer.model, "unk_token", None)
    token = tokenizer.token_to_id(spelling) if spelling else None
    return None if token is None or spelling is None else (token, spelling)
