"""A small checkpoint folder (tokenizer and config, no weights), and the real data where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_catalogs import example
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

CODES = 40


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<pad> 0, <bos> 1, <unk> 2, then <a_0> .. <a_39>, <b_0> .. for three levels; vocabulary 123."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokens = ["<pad>", "<bos>", "<unk>", *(f"<{level}_{code}>" for level in "abc" for code in range(CODES))]
    write_checkpoint(folder, tokens)
    return folder


def write_checkpoint(folder: Path, tokens: list[str]) -> None:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if "<bos>" in vocabulary:
        begin = [("<bos>", vocabulary["<bos>"])]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=begin)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokens), "bos_token_id": 0}))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose text tokens come first and whose SIDs <a_0> .. are added behind them."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the user saw"] * 9, trainer)
    added = [f"<{letter}_{code}>" for letter in "abc" for code in range(CODES)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512}))
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path | None:
    folder = os.environ.get("XGR_TEST_DATA")
    return Path(folder) if folder else None


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The built file of a small catalog."""
    example().save(tmp_path / "catalog.xgr")
    return tmp_path / "catalog.xgr"
