"""The fast way to the tokens of a whole text: split it at its SIDs, and know the pieces between from before.

Only where that provably gives what the tokenizer makes of the whole text. A tokenizer cuts a text at its
added tokens first and encodes what is between them piece by piece, so it is enough that every SID token is an
added token, that it is found wherever it stands, and that no other added token can overlap it (`why_not`).
What a tokenizer does with a piece beside an added token, such as a blank that SentencePiece puts before it,
is asked of the tokenizer itself, with such a token beside the piece.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenizers import AddedToken, Tokenizer

SHORT = 256  # characters; longer pieces are kept in smaller numbers
KEPT_SHORT, KEPT_LONG = 1 << 15, 64
LONGEST = 64  # characters of a SID token
_LOCAL = ("NFC", "NFD", "NFKC", "NFKD")  # of a text that is so already, each part is so, too


class Pieces:
    """One tokenizer and the SID tokens of one catalog."""

    def __init__(self, tokenizer: Tokenizer, anchor: int, normalized: bool) -> None:
        """anchor: any of the SID tokens; normalized: they are found in normalised text."""
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._text = str(tokenizer.get_added_tokens_decoder()[anchor].content)
        self._normalizer = tokenizer.normalizer if normalized else None
        self._short = lru_cache(KEPT_SHORT)(self._encoded)
        self._long = lru_cache(KEPT_LONG)(self._encoded)

    def tokens(self, text: str, sids: Sequence[str], rows: Sequence[Sequence[int]]) -> list[int] | None:
        """The tokens of `text`, in which these SIDs stand in this order; rows: their tokens.

        None where they do not, or where the text is none that this way is for.
        """
        normalizer = self._normalizer
        if normalizer is not None and not text.isascii() and normalizer.normalize_str(text) != text:
            return None
        tokens: list[int] = []
        at = 0
        for sid, row in zip(sids, rows, strict=True):
            found = text.find(sid, at)
            if found < 0:
                return None
            if found > at:
                tokens += self._of(text[at:found], at == 0, False)
            tokens += row
            at = found + len(sid)
        if at < len(text):
            tokens += self._of(text[at:], at == 0, True)
        return tokens

    def _of(self, piece: str, first: bool, last: bool) -> tuple[int, ...]:
        return (self._short if len(piece) <= SHORT else self._long)(piece, first, last)

    def _encoded(self, piece: str, first: bool, last: bool) -> tuple[int, ...]:
        """A piece with an anchor on each side where a SID stands."""
        before, behind = "" if first else self._text, "" if last else self._text
        (encoding,) = self._tokenizer.encode_batch_fast([before + piece + behind], add_special_tokens=False)
        ids = encoding.ids
        return tuple(ids[not first : len(ids) - (not last)])


def why_not(tokenizer: Tokenizer, tokens: Iterable[int]) -> str | None:
    """Why texts with these SID tokens cannot be split at them, None if they can be."""
    added = tokenizer.get_added_tokens_decoder()
    numbers = set(tokens)
    if not numbers <= set(added):
        return "SID tokens are not among the tokenizer's added tokens"
    ours = [added[number] for number in numbers]
    if any(one.lstrip or one.rstrip for one in ours) or any(one.single_word for one in added.values()):
        return "added tokens of the tokenizer take blanks beside them, or are whole words"
    if len({one.normalized for one in ours}) > 1:
        return "some SID tokens are found in normalised text and some are not"
    texts = {str(one.content) for one in ours}
    if any(len(text) > LONGEST or any(map(str.isspace, text)) for text in texts):
        return "SID tokens are very long, or hold blanks"
    if ours[0].normalized and not (_is_local(tokenizer) and all(map(str.isascii, texts))):
        return "the tokenizer changes texts before it looks for SID tokens"
    return _overlap(texts, _spellings(tokenizer, added))


def _is_local(tokenizer: Tokenizer) -> bool:
    """Whether a text that the normaliser leaves alone has only parts that it leaves alone."""
    normalizer = tokenizer.normalizer
    return normalizer is None or json.loads(normalizer.__getstate__()).get("type") in _LOCAL


def _spellings(tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> set[str]:
    """Of all added tokens, as they are and as they are looked for in normalised text."""
    normalizer: Any = tokenizer.normalizer
    texts = {str(one.content) for one in added.values()}
    if normalizer is not None:
        texts |= {normalizer.normalize_str(str(one.content)) for one in added.values() if one.normalized}
    return texts


def _overlap(sids: set[str], every: set[str]) -> str | None:
    """An added token that could take a part of a SID token's text, wherever the two stand."""
    beginnings = {text[:size] for text in sids for size in range(1, len(text) + 1)}
    sizes, letters = sorted({*map(len, sids)}), {text[0] for text in sids}
    for other in every:
        # One that begins before a SID token is found, and takes of it what its own end, or more, is made of.
        for start in range(other in sids, len(other)):
            rest = other[start:]
            if rest[0] in letters and (
                (start > 0 and rest in beginnings) or any(rest[:size] in sids for size in sizes)
            ):
                return f"the added token {other!r:.80} could overlap a SID token"
    firsts = {other[0] for other in every if other}
    for text in sids:
        # One within it may be looked for before it is, and then takes its part.
        for start in range(len(text)):
            if text[start] in firsts and any(
                text[start:end] in every for end in range(start + 1, len(text) + (start > 0))
            ):
                return f"an added token stands within the SID token {text!r:.80}"
    return None
