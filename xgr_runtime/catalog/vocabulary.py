"""What a catalog needs to know of a checkpoint: ids of token strings, its size, begin and end tokens.

Reads JSON files and the tokenizer only, so that a router can load a catalog without torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from xgr_runtime.errors import CatalogError
from xgr_runtime.files import read_object
from xgr_runtime.tokenizer import around, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

MAX_TOKEN = 2**31 - 1
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # of a letter that SentencePiece has no piece for
_NUMBERS = re.compile(r"[\[(]?\d+(?:[,;:/|_-]\d+)+[\])]?")


@dataclass(frozen=True)
class Vocabulary:
    """Resolves token strings. `size` None: ids are bounded by int32 alone."""

    size: int | None = None
    tokenizer: Tokenizer | None = None
    begin: Sequence[int] = ()  # what the tokenizer puts before any text
    end: Sequence[int] = ()  # and behind it

    def resolve(self, token: str | int) -> int:
        """The id of one token; raises CatalogError, whose message starts with the token."""
        token_id = self._lookup(token) if isinstance(token, str) else token
        if token_id < 0 or token_id > MAX_TOKEN or (self.size is not None and token_id >= self.size):
            limit = f"[0, {self.size})" if self.size is not None else "the range of 32 bits"
            raise CatalogError(
                f"token {token!r:.80} is out of vocabulary (its id {token_id} is not in {limit}): "
                "correct the SID or use the checkpoint that the SIDs were made for"
            )
        return token_id

    def holds(self, text: str) -> bool:
        """Whether that text is one token, or is to be looked up as if it were."""
        return self.tokenizer is None or self.find(text) is not None

    def word(self, token: int) -> str | None:
        """How a token of ordinary text is spelt; None for one that was added, or that reads like a code."""
        if self.tokenizer is None or token in self._added:
            return None
        text = self.tokenizer.id_to_token(token)
        if text is not None and _BYTE.fullmatch(text):  # any text may need it
            return text
        return None if text is None or (text[0] in "<[" and text[-1] in ">]" and len(text) > 2) else text

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a text. Raises CatalogError for what the tokenizer does not know."""
        if self.tokenizer is None or any("\ud800" <= letter <= "\udfff" for letter in text):
            return [self._lookup(text)]
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        if not ids or (unknown and unknown not in text and self.find(unknown) in ids):
            raise CatalogError(
                f"token {text!r:.80} is unknown: the checkpoint's tokenizer has no token for it; correct it"
            )
        return [self.resolve(token) for token in ids]

    @cached_property
    def _added(self) -> set[int]:
        return set(self.tokenizer.get_added_tokens_decoder()) if self.tokenizer else set()

    def _lookup(self, token: str) -> int:
        if self.tokenizer is None:
            raise CatalogError(
                f"token {token!r:.80} is a string and there is no tokenizer: "
                "pass --model-path with a tokenizer, or write token ids"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in token):
            raise CatalogError(f"token {token!r:.80} is not valid Unicode: correct it")
        token_id = self.find(token)
        if token_id is not None:
            return token_id
        if _NUMBERS.fullmatch(token):
            raise CatalogError(
                f"token {token!r:.80} is numbers with signs between them: write a SID of numbers as a list, "
                "or with blanks between, and declare how codes are spelt (sid_format)"
            )
        raise CatalogError(
            f"token {token!r:.80} is unknown: the checkpoint's tokenizer has no single token for it; "
            "correct the SID or use the checkpoint that the SIDs were made for"
        )

    def find(self, token: str) -> int | None:
        """The id of one token by its text, None if there is none."""
        if self.tokenizer is None or any("\ud800" <= letter <= "\udfff" for letter in token):
            return None
        token_id = self.tokenizer.token_to_id(token)
        if token_id is not None:
            return int(token_id)
        # Byte-level tokenizers store " a" in another spelling: take one token that reads the same.
        ids = self.tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) == 1 and self.tokenizer.decode(ids, skip_special_tokens=False) == token:
            return int(ids[0])
        return None


def read_vocabulary(model_dir: Path | None, size: int | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint folder; `size` overrides its config.json.

    Raises CatalogError for a missing folder and for files that cannot be read, ModelError for a tokenizer's.
    """
    if model_dir is None:
        return Vocabulary(size)
    size = size or _configured_size(model_dir)
    tokenizer = read_tokenizer(model_dir)
    if tokenizer is None:
        return Vocabulary(size)
    begin, end = around(tokenizer)
    return Vocabulary(size or tokenizer.get_vocab_size(with_added_tokens=True), tokenizer, begin, end)


def vocabulary_size(model_dir: Path | None) -> int | None:
    """How many tokens a checkpoint has, None if nothing says it. Raises as `read_vocabulary` does.

    Its tokenizer is read only where config.json is silent: megabytes that take a second.
    """
    if model_dir is None:
        return None
    return _configured_size(model_dir) or read_vocabulary(model_dir).size


def _configured_size(model_dir: Path) -> int | None:
    """What config.json says. Raises CatalogError."""
    if not model_dir.is_dir():
        raise CatalogError(f"{model_dir} is not a folder: --model-path must name a checkpoint folder")
    path = model_dir / "config.json"
    config = read_object(path, CatalogError)
    text_config = config.get("text_config")
    size = config.get("vocab_size", text_config.get("vocab_size") if isinstance(text_config, dict) else None)
    if size is not None and not (type(size) is int and 0 < size <= MAX_TOKEN + 1):
        raise CatalogError(f"{path}: vocab_size is {size!r:.40}: it must be 1 to {MAX_TOKEN + 1}")
    return size
