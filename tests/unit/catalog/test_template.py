"""Prompts from histories: defaults of the checkpoint, catalog.json, and what is dropped."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_catalogs import build_from_arrays
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from xgr_runtime.catalog import Catalog, PromptTemplate, build_catalog, load_catalog
from xgr_runtime.errors import CatalogError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIDS = [[10, 11], [20, 21], [30, 31]]


def catalog_with(template: PromptTemplate) -> Catalog:
    return build_from_arrays(["a", "b", "c"], SIDS, template=template)


def source(folder: Path, template: dict[str, Any] | None) -> Path:
    (folder / "index.json").write_text(json.dumps({"a": [3, 4], "b": [5, 6]}))
    if template is not None:
        (folder / "catalog.json").write_text(json.dumps(template))
    return folder / "index.json"


@given(
    st.lists(st.integers(90, 99), max_size=3),
    st.lists(st.integers(90, 99), max_size=2),
    st.lists(st.integers(90, 99), max_size=2),
    st.lists(st.integers(0, 2), max_size=12),
    st.integers(1, 8),
    st.integers(5, 40),
)
def test_the_newest_items_that_fit_are_kept(
    prefix: list[int], separator: list[int], suffix: list[int], history: list[int], most: int, limit: int
) -> None:
    catalog = catalog_with(PromptTemplate(tuple(prefix), tuple(separator), tuple(suffix), most))

    def prompt(kept: list[int]) -> list[int]:
        body = [token for i, leaf in enumerate(kept) for token in (separator if i else []) + SIDS[leaf]]
        return prefix + body + suffix

    newest = [history[len(history) - count :] for count in range(min(most, len(history)) + 1)]
    best = max((kept for kept in newest if len(prompt(kept)) <= limit), key=len)
    assert catalog.prompt_tokens(history, limit) == (prompt(best), len(history) - len(best))


def test_a_template_longer_than_the_limit_is_an_error() -> None:
    catalog = catalog_with(PromptTemplate((1, 2), (), (3,)))
    assert catalog.prompt_tokens([0, 1], 3) == ([1, 2, 3], 2)
    with pytest.raises(CatalogError, match="take 3 tokens, the limit is 2: raise --max-prompt-tokens"):
        catalog.prompt_tokens([0], 2)


def test_numpy_histories_are_taken() -> None:
    catalog = catalog_with(PromptTemplate((1,)))
    assert catalog.prompt_tokens(np.array([2, 0]), 64) == ([1, 30, 31, 10, 11], 0)
    assert catalog.prompt_tokens([], 64) == ([1], 0)


def test_what_the_tokenizer_puts_around_texts_is_around_prompts(tmp_path: Path, checkpoint: Path) -> None:
    """It puts <bos> (1) before them; config.json says 0 and is not asked."""
    assert build_catalog(source(tmp_path, None), checkpoint).template == PromptTemplate((1,))
    assert build_catalog(source(tmp_path, None)).template == PromptTemplate()


@pytest.mark.parametrize(
    ("around", "prefix", "suffix"),
    [("$A", (), ()), ("<bos> $A", (1,), ()), ("$A <unk>", (), (2,)), ("<pad> <bos> $A <unk>", (0, 1), (2,))],
)
@pytest.mark.parametrize("named", [None, {"bos_token": "<pad>", "add_bos_token": False}])
def test_no_file_is_asked_for_what_the_tokenizer_does(
    around: str,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    named: dict[str, Any] | None,
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    words = [("<pad>", 0), ("<bos>", 1), ("<unk>", 2)]
    tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=words)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 100}, "bos_token_id": 0}))
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    catalog = build_catalog(source(tmp_path, None), tmp_path)
    assert (catalog.template.prefix, catalog.template.suffix, catalog.vocab_size) == (prefix, suffix, 100)


def test_catalog_json_gives_tokens_as_strings_or_ids(tmp_path: Path, checkpoint: Path) -> None:
    fields = {"prefix": ["<bos>", 7], "separator": "<pad>", "suffix": [2], "max_history_items": 5}
    catalog = build_catalog(source(tmp_path, fields), checkpoint)
    assert catalog.template == PromptTemplate((1, 7), (0,), (2,), 5)
    assert build_catalog(source(tmp_path, {"prefix": []}), checkpoint).template == PromptTemplate()


def test_the_template_is_part_of_the_built_file(tmp_path: Path, checkpoint: Path) -> None:
    path = source(tmp_path, {"suffix": [2]})
    build_catalog(path, checkpoint).save(tmp_path / "c.xgr")
    (tmp_path / "catalog.json").unlink()
    built, plain = load_catalog(tmp_path / "c.xgr", checkpoint), load_catalog(path, checkpoint)
    assert built.template == PromptTemplate((1,), (), (2,))
    assert built.version != plain.version


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefx": [1]}, "unknown fields ['prefx']: use"),
        ({"prefix": [1.5]}, "prefix is [1.5]: it must be text, or a list of token strings or ids"),
        ({"suffix": None}, "suffix is None"),
        ({"separator": [True]}, "separator is [True]"),
        ({"prefix": ["<none>"]}, "prefix: token '<none>' is unknown"),
        ({"suffix": [123]}, "suffix: token 123 is out of vocabulary"),
        ({"max_history_items": 0}, "max_history_items is 0"),
        ({"max_history_items": "5"}, "max_history_items is '5'"),
        ({"max_history_items": True}, "max_history_items is True"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_templates_are_named(
    fields: dict[str, Any], message: str, tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(CatalogError) as caught:
        build_catalog(source(tmp_path, fields), checkpoint)
    assert message in str(caught.value)
    assert "catalog.json" in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "link-to-nothing"])
@pytest.mark.parametrize(
    "name", ["catalog.json", "model/config.json", "model/tokenizer_config.json", "model/tokenizer.json"]
)
def test_files_beside_a_source_are_ordinary_files(name: str, kind: str, tmp_path: Path) -> None:
    """What may never end is not read, and a link that leads nowhere does not pass for no file."""
    path, model = tmp_path / name, tmp_path / "model"
    model.mkdir()
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "link-to-nothing": lambda: path.symlink_to("nothing"),
    }
    make[kind]()
    with pytest.raises(StartupError, match=re.escape(str(path))):
        build_catalog(source(tmp_path, None), model)
