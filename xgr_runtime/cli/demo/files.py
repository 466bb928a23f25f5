"""Writes a generated shop in the shapes that the runtime reads: catalog, histories and tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from xgr_runtime.cli.demo.data import DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from xgr_runtime.cli.demo.data import IntArray, Shop

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
LEVEL_NAMES = "abc"


def write_catalog(shop: Shop, path: Path) -> None:
    """One line an item: item, sid (token strings), title, popularity."""
    rows = zip(shop.codes.tolist(), shop.titles, shop.popularity.tolist(), strict=True)
    _write_lines(
        path,
        (
            {"item": item_id(number), "sid": sid_tokens(codes), "title": title, "popularity": popularity}
            for number, (codes, title, popularity) in enumerate(rows)
        ),
    )


def write_histories(shop: Shop, path: Path) -> None:
    """One line a user: user, history (item ids, oldest first), next (the held-out item)."""
    pairs = zip(shop.histories, shop.next_items.tolist(), strict=True)
    _write_lines(
        path,
        (
            {"user": str(user), "history": [item_id(i) for i in history.tolist()], "next": item_id(held_out)}
            for user, (history, held_out) in enumerate(pairs)
        ),
    )


def write_tokenizer(codebook: int, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json: one id per code and level, <bos> before a text."""
    vocabulary = [*SPECIAL_TOKENS, *(f"<{name}_{code}>" for name in LEVEL_NAMES for code in range(codebook))]
    tokenizer = Tokenizer(
        WordLevel({token: number for number, token in enumerate(vocabulary)}, unk_token="<pad>")
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = Split(Regex("<[^<>]+>"), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def vocabulary_size(codebook: int) -> int:
    """Rows of the model's embedding."""
    return len(SPECIAL_TOKENS) + DEPTH * codebook


def token_ids(codes: IntArray, codebook: int) -> IntArray:
    """The token ids of SIDs: codes [..., DEPTH] -> ids of the same shape."""
    return len(SPECIAL_TOKENS) + codebook * (codes * 0 + range(DEPTH)) + codes


def sid_tokens(codes: list[int]) -> list[str]:
    """The SID as the tokenizer spells it: ["<a_4>", "<b_17>", "<c_0>"]."""
    return [f"<{name}_{code}>" for name, code in zip(LEVEL_NAMES, codes, strict=True)]


def item_id(number: int) -> str:
    """Item ids of the shop read p00017; they are names, not row numbers."""
    return f"p{number:05d}"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
