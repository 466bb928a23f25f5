"""Templates that are written as text: prompts have the ids of their whole text."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from xgr_runtime.catalog import build_catalog
from xgr_runtime.errors import CatalogError
from xgr_runtime.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

INDEX = {
    "1": ["<a_1>", "<b_2>", "<c_3>"],
    "2": ["<a_0>", "<b_2>", "<c_39>"],
    "3": ["<a_7>", "<b_0>", "<c_0>"],
}
FILES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.sampled_from("the usaw,\n:ü<>|a_1 "), max_size=12)


def prompt(folder: Path, template: dict[str, Any], model: Path, history: list[str]) -> list[int]:
    (folder / "index.json").write_text(json.dumps(INDEX))
    (folder / "catalog.json").write_text(json.dumps(template))
    catalog = build_catalog(folder / "index.json", model)
    return catalog.prompt_tokens(catalog.leaves_of_items(history).tolist(), 4096)[0]


def whole(model: Path, prefix: str, separator: str, suffix: str, history: list[str]) -> list[int]:
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    text = prefix + separator.join("".join(INDEX[item]) for item in history) + suffix
    ids: list[int] = tokenizer.encode(text).ids
    return ids


@FILES
@given(parts=st.tuples(TEXT, TEXT, TEXT), history=st.lists(st.sampled_from([*INDEX]), min_size=1, max_size=4))
def test_the_parts_have_the_ids_of_the_whole(
    parts: tuple[str, str, str], history: list[str], tmp_path: Path, words: Path
) -> None:
    assume(all(parts))
    names = ("prefix", "separator", "suffix")
    template = dict(zip(names, parts, strict=True))
    assert prompt(tmp_path, template, words, history) == whole(words, *parts, history)


@pytest.mark.parametrize("written", ["the user", ["the ", "user"], ["the user"], ["the u", "s", "er"]])
def test_a_list_of_words_is_one_text(written: Any, tmp_path: Path, words: Path) -> None:
    found = prompt(tmp_path, {"prefix": written, "suffix": []}, words, ["1"])
    assert found == whole(words, "the user", "", "", ["1"])


def test_ids_stay_ids_beside_words(tmp_path: Path, words: Path) -> None:
    found = prompt(tmp_path, {"prefix": [300, "the user"]}, words, ["2"])
    assert found == [300, *whole(words, "the user", "", "", ["2"])]


def test_what_the_tokenizer_puts_around_texts_is_around_words(tmp_path: Path, words: Path) -> None:
    model = changed(words, tmp_path / "model")
    assert prompt(tmp_path, {"prefix": "the user: ", "suffix": " saw"}, model, ["1", "3"]) == whole(
        model, "the user: ", "", " saw", ["1", "3"]
    )
    assert prompt(tmp_path, {"prefix": [], "suffix": []}, model, ["1"]) == whole(words, "", "", "", ["1"])


def changed(words: Path, folder: Path, **flags: bool) -> Path:
    """The same checkpoint, but its tokenizer puts <a_39> before a text and <c_39> behind it."""
    shutil.copytree(words, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<a_39>", "<c_39>")]
    tokenizer.post_processor = TemplateProcessing(single="<a_39> $A <c_39>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_sids_that_take_the_blanks_beside_them_are_refused(tmp_path: Path, words: Path) -> None:
    """Then a separator of blanks is in no prompt that training saw."""
    model = tmp_path / "model"
    shutil.copytree(words, model)
    content = json.loads((model / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["lstrip"] = True
    (model / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CatalogError, match="other tokens of a whole prompt than of prefix, SIDs, separator"):
        prompt(tmp_path, {"prefix": "the user saw ", "separator": ",  "}, model, ["1"])
