"""A byte-level BPE tokenizer from `vocab.json` and `merges.txt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# How Qwen's tokenizers cut a text: contractions, words with a sign before them, digits, signs, line ends.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLASSES = ("Qwen2Tokenizer", "GPT2Tokenizer")
"""The tokenizers whose way to cut a text is known; a name ends in Fast or not."""


def read_byte_pairs(vocabulary: Path, merges: Path, kind: str, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of class `kind`. Raises ValueError for an unknown one, Exception for damaged files."""
    if kind not in CLASSES:
        raise ValueError(f"how a tokenizer of class {kind or 'without a name'} cuts a text is not known here")
    tokenizer = Tokenizer(BPE.from_file(str(vocabulary), str(merges)))
    blank = settings.get("add_prefix_space") is True
    if kind == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
