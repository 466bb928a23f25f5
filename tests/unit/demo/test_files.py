"""The written files: a tokenizer that agrees with `token_ids`, and JSON lines that carry the whole shop."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from xgr_runtime.cli.demo import files
from xgr_runtime.cli.demo.data import ShopSettings, generate

CODEBOOK = 32
SHOP = generate(ShopSettings(items=200, users=20, codebook=CODEBOOK))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    files.write_tokenizer(CODEBOOK, tmp_path)
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_every_code_of_every_level_is_one_token(tokenizer: Tokenizer) -> None:
    codes = np.repeat(np.arange(CODEBOOK)[:, None], 3, axis=1)
    expected = files.token_ids(codes, CODEBOOK)
    for row, ids in zip(codes.tolist(), expected.tolist(), strict=True):
        assert [tokenizer.encode(token, add_special_tokens=False).ids for token in files.sid_tokens(row)] == [
            [number] for number in ids
        ]
    assert len(np.unique(expected)) == 3 * CODEBOOK
    assert tokenizer.get_vocab_size() == files.vocabulary_size(CODEBOOK) == expected.max() + 1


def test_a_text_of_sids_becomes_begin_token_and_their_ids(tokenizer: Tokenizer) -> None:
    text = "".join(files.sid_tokens([3, 1, 4]) + files.sid_tokens([1, 5, 9]))
    expected = files.token_ids(np.array([[3, 1, 4], [1, 5, 9]]), CODEBOOK).ravel().tolist()
    assert tokenizer.encode(text).ids == [files.BOS, *expected]


def test_transformers_reads_the_tokenizer_and_its_begin_token(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files.write_tokenizer(CODEBOOK, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.bos_token_id == files.BOS
    assert loaded.convert_tokens_to_ids("<c_31>") == 3 + 3 * CODEBOOK - 1


def test_catalog_lines_carry_every_item(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    files.write_catalog(SHOP, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["title"] for row in rows] == SHOP.titles
    assert [row["popularity"] for row in rows] == SHOP.popularity.tolist()
    assert len({row["item"] for row in rows}) == 200
    assert [row["sid"] for row in rows] == [files.sid_tokens(codes) for codes in SHOP.codes.tolist()]


def test_history_lines_name_items_of_the_catalog_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "histories.jsonl"
    files.write_histories(SHOP, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 20
    for row, history, held_out in zip(rows, SHOP.histories, SHOP.next_items, strict=True):
        assert row["history"] == [files.item_id(item) for item in history]
        assert row["next"] == files.item_id(held_out)
