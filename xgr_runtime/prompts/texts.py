"""From a text to token ids: those of the whole text through the tokenizer, always."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xgr_runtime.errors import BadRequest
from xgr_runtime.tokenizer import around

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from xgr_runtime.prompts.pieces import Pieces

LONG_TOKEN = 64  # bytes per token that any text may have: some tokenizers drop blanks
SHORTENED = 4  # times, at most, that Unicode normalisation shortens a text


class Rendered(NamedTuple):
    """A prompt: its tokens [L], how many items of the history it does not show, its text if it has one."""

    tokens: NDArray[np.int32]
    dropped: int
    text: str | None


class PromptText(NamedTuple):
    """A prompt as text, and the SIDs that stand in it, in this order: their texts and tokens."""

    text: str
    sids: Sequence[str]
    rows: Sequence[Sequence[int]]


class Texts:
    """One tokenizer, asked for no more than a prompt may hold."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin, self._end = around(tokenizer)
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self.bytes_per_token = max(LONG_TOKEN, SHORTENED * longest)  # that a text has at most

    def check_size(self, text: str, most: int, field: str) -> None:
        """Raises BadRequest for a text that cannot be a prompt of `most` tokens, before it costs time."""
        if len(text) > most * self.bytes_per_token:
            raise BadRequest(
                f"{field} gives a prompt of far too many tokens, the limit is {most}: shorten it", field
            )

    def fast(self, text: PromptText, pieces: Pieces, special: bool) -> NDArray[np.int32] | None:
        """As `whole` says, or None where it has to be asked."""
        tokens = pieces.tokens(*text)
        if tokens is None:
            return None
        return np.array([*self._begin, *tokens, *self._end] if special else tokens, np.int32)

    def whole(self, text: str, special: bool) -> NDArray[np.int32]:
        """Token ids [L] of a text; `special`: with what the tokenizer puts around texts."""
        # Other threads run meanwhile, which they do not during `encode`.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return np.array(encoding.ids, np.int32)


def check_length(count: int, field: str, most: int) -> None:
    """Raises BadRequest unless a prompt may have so many tokens."""
    if not count:
        raise BadRequest(f"{field} gives an empty prompt: it needs at least one token", field)
    if count > most:
        raise BadRequest(f"{field} gives a prompt of {count} tokens, the limit is {most}: shorten it", field)
