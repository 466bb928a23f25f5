"""Small tokenizers of the kinds that recommenders have, with the SIDs <a_0> <b_0> ... added."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xgr_runtime.tokenizer.byte_pairs import QWEN

if TYPE_CHECKING:
    from pathlib import Path

CODES = 12
SIDS = [f"<{level}_{code}>" for level in "ab" for code in range(CODES)]
WORDS = [
    "the user bought a lamp, a chair and 12 books",
    "what comes next? Nothing that we don't know",
    "größer",
]


def of_qwens_kind() -> Tokenizer:
    """Trained on a few words, with no token added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(WORDS * 5, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


def byte_pairs(folder: Path, normalized: bool, special: bool = False) -> Tokenizer:
    """Of Qwen's kind, with `<|end|>`; normalized: SIDs are looked for in normalised text."""
    tokenizer = of_qwens_kind()
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(token, normalized=normalized, special=special) for token in SIDS])
    return saved(folder, tokenizer)


def words(folder: Path) -> Tokenizer:
    """Whole words alone, cut at blanks and signs."""
    known = sorted({word for text in WORDS for word in text.replace(",", " , ").replace("?", " ? ").split()})
    vocabulary = {word: number for number, word in enumerate(["<unk>", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in SIDS])
    return saved(folder, tokenizer)


def pieces(folder: Path, legacy: bool) -> None:
    """A SentencePiece model of Llama's kind; legacy: a blank before each part, not the first alone."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    decoder = {str(size + n): {"content": token, "normalized": True} for n, token in enumerate(SIDS)}
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"vocab_size": size + len(SIDS)}))


def saved(folder: Path, tokenizer: Tokenizer) -> Tokenizer:
    """Written as a checkpoint has it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": size, "max_position_embeddings": 4096}))
    return tokenizer
