"""From a text to token ids: those of the whole text through the tokenizer, always."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgr_runtime.errors import BadRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

LONG_TOKEN = 64  # bytes per token that any text may have: some tokenizers drop blanks
SHORTENED = 4  # times, at most, that Unicode normalisation shortens a text


class Texts:
    """One tokenizer, asked for no more than a prompt may hold."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self._bytes_per_token = max(LONG_TOKEN, SHORTENED * longest)

    def tokens(self, text: str, most: int, field: str, special: bool) -> NDArray[np.int32]:
        """Token ids [L]; `special`: with what the tokenizer puts around texts. Raises BadRequest."""
        if len(text) > most * self._bytes_per_token:
            raise BadRequest(
                f"{field} gives a prompt of far too many tokens, the limit is {most}: shorten it", field
            )
        return self.whole(text, special)

    def whole(self, text: str, special: bool) -> NDArray[np.int32]:
        # Other threads run meanwhile, which they do not during `encode`.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        return np.array(encoding.ids, np.int32)
