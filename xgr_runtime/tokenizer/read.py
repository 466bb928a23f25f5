"""Reads the tokenizer of a checkpoint folder, from whichever files its authors saved.

`tokenizer.json` where there is one, else `vocab.json` with `merges.txt`, else a SentencePiece model. Tokens
that were added, as those of SIDs often are, may be named in other files alone (see `added`). Truncation and
padding, which a trainer may have left switched on, are no part of a tokenizer and are switched off.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from xgr_runtime.errors import ModelError
from xgr_runtime.files import is_missing, open_ordinary, read_object
from xgr_runtime.tokenizer.added import NAMED, SETTINGS, add_missing, read_added, token_text
from xgr_runtime.tokenizer.byte_pairs import read_byte_pairs
from xgr_runtime.tokenizer.sentencepiece import read_pieces, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

WHOLE = "tokenizer.json"
BYTE_PAIRS = ("vocab.json", "merges.txt")
PIECES = ("tokenizer.model", "spiece.model")
# Of these, every text between added tokens goes to SentencePiece as it is, and a begin token comes first.
WITH_PIECES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
REMEDY = (
    "save a tokenizer.json beside it, as AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) does, "
    "and compare its ids with those of training"
)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of the checkpoint in `folder`, None if there is no file of one.

    Raises ModelError for files that cannot be read, that disagree, or of a kind that is not known.
    """
    settings = read_object(folder / SETTINGS, ModelError)
    if not is_missing(folder / WHOLE):
        tokenizer = _try(
            folder / WHOLE, lambda path: Tokenizer.from_buffer(_content(path)), "export it again"
        )
        raw = False
    else:
        found = _from_parts(folder, settings)
        if found is None:
            return None
        tokenizer, raw = found, True
    add_missing(tokenizer, read_added(folder), raw)
    if raw:
        _add_ends(tokenizer, folder, settings)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind any text.

    Asked of the tokenizer itself: files say it in several ways, and config.json often says it wrongly.
    """
    try:
        encoding = tokenizer.encode("a")
    except Exception:  # the library raises plain Exception; words alone are known to some, and no stand-in
        encoding = tokenizer.encode("")
    marked = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
    before = [number for number, _ in itertools.takewhile(lambda one: one[1], marked)]
    behind = [
        number for number, _ in itertools.takewhile(lambda one: one[1], reversed(marked[len(before) :]))
    ]
    return before, behind[::-1]


def _from_parts(folder: Path, settings: Mapping[str, Any]) -> Tokenizer | None:
    kind = class_name(settings)
    if not any(is_missing(folder / name) for name in BYTE_PAIRS):
        merges = folder / BYTE_PAIRS[1]
        return _try(
            folder / BYTE_PAIRS[0], lambda path: read_byte_pairs(path, merges, kind, settings), REMEDY
        )
    path = next((folder / name for name in PIECES if not is_missing(folder / name)), None)
    return None if path is None else _try(path, lambda path: _from_pieces(path, kind, settings), REMEDY)


def class_name(settings: Mapping[str, Any]) -> str:
    """The tokenizer's class, as fast and slow ones are called alike; "" where the file names none."""
    name = settings.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _from_pieces(path: Path, kind: str, settings: Mapping[str, Any]) -> Tokenizer:
    """Raises ValueError for a tokenizer that does more than hand texts to SentencePiece."""
    if kind and kind not in WITH_PIECES:
        raise ValueError(f"what a tokenizer of class {kind} does beside SentencePiece is not known here")
    return rebuild(read_pieces(_content(path)), legacy=settings.get("legacy") is not False)


def _content(path: Path) -> bytes:
    with open_ordinary(path) as file:
        return file.read()


def _try(path: Path, read: Callable[[Path], Tokenizer], remedy: str) -> Tokenizer:
    try:
        open_ordinary(path).close()
        return read(path)
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} is not a tokenizer ({error!s:.300}): {remedy}") from error


def _add_ends(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Begin and end tokens, which a tokenizer.json would hold. Raises ModelError."""
    named = read_object(folder / NAMED, ModelError)
    by_default = (class_name(settings) or "LlamaTokenizer") in WITH_PIECES
    ends = []
    for switch, name, default, usual in (
        ("add_bos_token", "bos_token", by_default, "<s>"),
        ("add_eos_token", "eos_token", False, "</s>"),
    ):
        wanted = settings.get(switch, default)
        text = token_text(settings.get(name, named.get(name, usual)))
        ends.append(text if wanted and text and tokenizer.token_to_id(text) is not None else None)
    begin, end = ends
    parts = [part for part in (begin, "$A", end) if part]
    tokenizer.post_processor = TemplateProcessing(
        single=parts, special_tokens=[(text, tokenizer.token_to_id(text)) for text in (begin, end) if text]
    )
