"""Small inputs that were reported to fail, where the folder of real data has them: their right prompts."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

from xgr_runtime.catalog import build_catalog
from xgr_runtime.checkpoint import described, read_config
from xgr_runtime.errors import CatalogError, ModelError
from xgr_runtime.tokenizer import read_tokenizer

CASES = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs XGR_TEST_DATA with cases/")
MODEL = CASES / "01-no-begin-token/model"
INDEX = CASES / "01-no-begin-token/index.json"


def model_with(folder: Path, *sources: Path) -> Path:
    """The checkpoint, with files of `sources` in the place of its own."""
    for source in sources:
        for file in source.iterdir() if source.is_dir() else [source]:
            shutil.copy(file, folder)
    return folder


def expected(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CASES / case / "expected.json").read_text())
    return found


def prompt(source: Path, model: Path, history: list[str]) -> list[int]:
    catalog = build_catalog(source, model)
    return catalog.prompt_tokens(catalog.leaves_of_items(history).tolist(), 4096)[0]


@pytest.mark.parametrize(
    "files",
    [[], ["01-no-begin-token/named"], *([f"03-added-tokens-elsewhere/{n}"] for n in ("base-json", "slow"))],
)
def test_a_history(files: list[str], tmp_path: Path) -> None:
    """No begin token that training never saw; SID tokens that other files name."""
    own = [MODEL] if not files or files[0].startswith("01") else []
    model = model_with(tmp_path, *own, *(CASES / file for file in files))
    right = expected("01-no-begin-token")
    assert prompt(INDEX, model, right["history"]) == right["prompt_ids"]


@pytest.mark.parametrize("left", ["truncation", "padding"])
def test_a_text_beside_what_a_trainer_left(left: str, tmp_path: Path) -> None:
    model = model_with(tmp_path, MODEL)
    shutil.copy(CASES / f"02-tokenizer-state/{left}.json", model / "tokenizer.json")
    tokenizer, right = read_tokenizer(model), expected("02-tokenizer-state")
    assert tokenizer is not None and tokenizer.encode(right["text"]).ids == right["prompt_ids"]


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter(alone: bool, tmp_path: Path) -> None:
    """What loads a checkpoint as it is takes none; `checkpoint/test_real_adapters.py` merges it."""
    model_with(tmp_path, *([] if alone else [MODEL]), CASES / "05-adapter/adapter")
    with pytest.raises(ModelError, match="merge_and_unload"):
        read_config(tmp_path)
    with described(tmp_path, str(MODEL) if alone else "") as files:
        right = expected("01-no-begin-token")
        assert prompt(INDEX, files, right["history"]) == right["prompt_ids"]


@pytest.mark.parametrize("template", ["words", "words-in-list", "ids"])
def test_words_in_a_template(template: str, tmp_path: Path) -> None:
    shutil.copy(INDEX, tmp_path)
    shutil.copy(CASES / f"06-words-in-template/{template}.json", tmp_path / "catalog.json")
    right = expected("06-words-in-template")
    assert prompt(tmp_path / "index.json", MODEL, right["history"]) == right["prompt_ids"]


@pytest.mark.parametrize("name", ["index.json", "c.jsonl", "info.txt"])
def test_sids_as_text(name: str, tmp_path: Path) -> None:
    folder = CASES / "07-sid-as-text"
    tokens = sorted(set(re.findall(r"<[^<>]+>", (folder / "info.txt").read_text())))
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}))
    tokenizer.add_tokens([AddedToken(token) for token in tokens])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    catalog = build_catalog(folder / name, tmp_path)
    assert (catalog.items, catalog.depth) == (400, 4)


@pytest.mark.parametrize(
    "table", ["bom.jsonl", "hive-binary.parquet", "shuffled.parquet", "spark.parquet", "u64.parquet"]
)
def test_tables(table: str) -> None:
    catalog = build_catalog(CASES / "09-tables" / table, MODEL)
    assert (catalog.items, catalog.depth) == (800, 3)


def test_a_table_in_another_encoding() -> None:
    with pytest.raises(CatalogError, match="is not UTF-8 text: convert it"):
        build_catalog(CASES / "09-tables/utf16.jsonl", MODEL)
