"""A small checkpoint folder (tokenizer and config, no weights), and the real data where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_catalogs import example
from tokenizers import Tokenizer, models, processors

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
def test_data() -> Path | None:
    folder = os.environ.get("XGR_TEST_DATA")
    return Path(folder) if folder else None


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The built file of a small catalog."""
    example().save(tmp_path / "catalog.xgr")
    return tmp_path / "catalog.xgr"
