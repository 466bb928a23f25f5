"""What a catalog needs to know of a checkpoint: token ids of strings, the vocabulary size, the begin token.

Reads the JSON files and the `tokenizers` library only, so that a router can load a catalog without torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgr_runtime.errors import CatalogError
from xgr_runtime.files import open_ordinary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKEN = 2**31 - 1


@dataclass(frozen=True)
class Vocabulary:
    """Resolves token strings. `size` None: ids are bounded by int32 alone."""

    size: int | None = None
    tokenizer: Tokenizer | None = None
    begin: int | None = None

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

    def _lookup(self, token: str) -> int:
        if self.tokenizer is None:
            raise CatalogError(
                f"token {token!r:.80} is a string and there is no tokenizer: "
                "pass --model-path with a tokenizer.json, or write token ids"
            )
        if any("\ud800" <= letter <= "\udfff" for letter in token):
            raise CatalogError(f"token {token!r:.80} is not valid Unicode: correct it")
        token_id = self.tokenizer.token_to_id(token)
        if token_id is not None:
            return int(token_id)
        # Byte-level tokenizers store " a" in another spelling: take one token that reads the same.
        ids = self.tokenizer.encode(token, add_special_tokens=False).ids
        if len(ids) == 1 and self.tokenizer.decode(ids, skip_special_tokens=False) == token:
            return int(ids[0])
        raise CatalogError(
            f"token {token!r:.80} is unknown: the checkpoint's tokenizer has no single token for it; "
            "correct the SID or use the checkpoint that the SIDs were made for"
        )


def read_vocabulary(model_dir: Path | None, size: int | None = None) -> Vocabulary:
    """The vocabulary of a checkpoint folder; `size` overrides its config.json.

    Raises CatalogError for a missing folder and for files that cannot be read.
    """
    if model_dir is None:
        return Vocabulary(size)
    if not model_dir.is_dir():
        raise CatalogError(f"{model_dir} is not a folder: --model-path must name a checkpoint folder")
    config = read_object(model_dir / "config.json")
    tokenizer = _load_tokenizer(model_dir / "tokenizer.json")
    if size is None:
        size = _size(model_dir / "config.json", config)
    if size is None and tokenizer is not None:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
    begin = _begin(read_object(model_dir / "tokenizer_config.json"), config, tokenizer)
    return Vocabulary(size, tokenizer, begin)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} if there is no such file. Raises CatalogError otherwise."""
    if _is_missing(path):
        return {}
    try:
        with open_ordinary(path) as file:
            value = json.loads(file.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogError(f"{path} cannot be read as JSON ({error}): correct or remove it") from error
    if not isinstance(value, dict):
        raise CatalogError(f"{path} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def _is_missing(path: Path) -> bool:
    """A link that leads nowhere is a mistake, and not a file that nobody has made."""
    return not path.exists() and not path.is_symlink()


def _load_tokenizer(path: Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    if _is_missing(path):
        return None
    try:
        open_ordinary(path).close()
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CatalogError(f"{path} is not a tokenizer ({error!s:.300}): export it again") from error


def _size(path: Path, config: dict[str, Any]) -> int | None:
    text_config = config.get("text_config")
    size = config.get("vocab_size", text_config.get("vocab_size") if isinstance(text_config, dict) else None)
    if size is not None and not (type(size) is int and 0 < size <= MAX_TOKEN + 1):
        raise CatalogError(f"{path}: vocab_size is {size!r:.40}: it must be 1 to {MAX_TOKEN + 1}")
    return size


def _begin(
    tokenizer_config: dict[str, Any], config: dict[str, Any], tokenizer: Tokenizer | None
) -> int | None:
    """The tokenizer's begin token, else config.json's bos_token_id."""
    token = tokenizer_config.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and tokenizer is not None:
        token_id = tokenizer.token_to_id(text)
        if token_id is not None:
            return int(token_id)
    token_id = config.get("bos_token_id")
    return token_id if isinstance(token_id, int) and token_id >= 0 else None
