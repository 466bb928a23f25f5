"""`xgr import`: a folder as training leaves it becomes what a server takes, with evaluation's prompts."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import project_folders as folders
import pytest
from numpy.typing import NDArray
from project_folders import END, ITEMS, PROJECTS

from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.cli import main
from xgr_runtime.config import ServeConfig, add_flags, from_args
from xgr_runtime.prompts import Prompts, Rendered
from xgr_runtime.tokenizer import read_tokenizer

KITS = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "kits"
SPELT = {
    "openonerec": "<s_{letter}_{code}>",
    "onerec-think": "<s_{letter}_{code}>",
    "unigenrec": "<SID_{level}_{code}>",
}
HISTORY = ["3", "5"]


def spelt(project: str, item: str) -> str:
    form = SPELT.get(project, "<{letter}_{code}>")
    codes = zip("abc", range(3), ITEMS[item], strict=True)
    return "".join(form.format(letter=letter, level=level, code=code) for letter, level, code in codes)


def named(project: str, item: str) -> str:
    return str(900 + int(item)) if project == "openonerec" else item


def settings(out: Path) -> ServeConfig:
    """What `xgr serve --config OUT/serve.toml` would run."""
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeConfig)
    return from_args(ServeConfig, parser.parse_args(["--config", str(out / "serve.toml")]), {})


def served(out: Path) -> tuple[Catalog, Prompts]:
    """What a server makes of the folder."""
    config = settings(out)
    catalog = load_catalog(config.catalog, config.model_path)
    model = Path(config.model_path)
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    prompts = Prompts.read(tokenizer, model)
    prompts.check(catalog)
    return catalog, prompts


def rendered(
    catalog: Catalog, prompts: Prompts, history: list[str], template: str | None = None, **variables: str
) -> Rendered:
    return prompts.of_history(catalog, template, {"": leaves(catalog, history)}, variables, 4096)


def leaves(catalog: Catalog, items: list[str]) -> NDArray[np.int32]:
    found = catalog.leaves_of_items(items)
    assert (found >= 0).all()
    return found


@pytest.fixture(scope="module", params=PROJECTS)
def imported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str]:
    """(project, the folder that import wrote, what it printed)."""
    project = str(request.param)
    root = PROJECTS[project](tmp_path_factory.mktemp(project))
    out = root.parent / f"{root.name}-out"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.append(" ".join(map(str, texts))))
        assert main(["import", str(root), "--out", str(out)]) == 0
    return project, out, "\n".join(printed)


def test_the_catalog_is_the_projects(imported: tuple[str, Path, str]) -> None:
    project, out, _ = imported
    catalog, _ = served(out)
    assert catalog.items == len(ITEMS) and catalog.depth == 3
    tokenizer = read_tokenizer(Path(settings(out).model_path))
    assert tokenizer is not None
    for item in ITEMS:
        sid = catalog.sids[leaves(catalog, [named(project, item)])[0]].tolist()
        assert "".join(map(tokenizer.id_to_token, sid)) == spelt(project, item)


def test_what_was_recognised_assumed_and_left_is_said(imported: tuple[str, Path, str]) -> None:
    project, _, printed = imported
    said = {
        "minionerec": [
            "MiniOneRec, Toys",
            "Toys_5_2016-10-2018-11.txt",
            "final_checkpoint",
            "checkpoint-7: another",
        ],
        "lcrec": [
            "LC-Rec, Toys",
            "21 titles",
            "checkpoint-10",
            "checkpoint-9: another",
            "set of tokens per level",
        ],
        "onerec-think": ["OneRec-Think, Toys", "global_trie.pkl: a pickle", "think"],
        "openonerec": ["OpenOneRec", "popularity (count)", "most frequent of 1 wordings", "do_sample=True"],
        "genrec": ["MIMIGenRec or GenRec, Toys", "the wording of", "--repetition_penalty 1.0"],
        "unigenrec": ["UniGenRec", "spelt <SID_0_{0}><SID_1_{1}><SID_2_{2}>", "raw_item_id"],
        "plain": ["a plain table", "one behind the other"],
    }
    for words in [*said[project], "recognised", "assumed", "not used", "next", "21 items"]:
        assert words in printed


def test_prompts_are_those_of_evaluation(imported: tuple[str, Path, str]) -> None:
    project, out, _ = imported
    catalog, prompts = served(out)
    one, two = (spelt(project, item) for item in HISTORY)
    b, e = "<|sid_begin|>", "<|sid_end|>"
    spaced = [sid.replace("><", "> <") for sid in (one, two)]
    expected = {
        "minionerec": ("paired with an input", f"interaction history: {one}, {two}\n\n### Response:\n"),
        "lcrec": ("Below is an", f"interacted with items {one}, {two} in chronological order. Can"),
        "onerec-think": ("<|im_start|>system\nYou", f"items: {b}{one}{e}; {b}{two}{e};<|im_end|>"),
        "openonerec": (
            "<|im_start|>system\nYou know {all}.<|im_end|>\n<|im_start|>user\nSaw: ",
            f"Saw: {b}{one}{e}{b}{two}{e}\nNext?/no_think<|im_end|>\n<|im_start|>assistant\n"
            f"<think>\n\n</think>\n\n{b}",
        ),
        "genrec": (
            "[system] Answer.\n[user] Which is next?\n\nAfter",
            f"After {one}, {two} comes\n[assistant] ",
        ),
        "unigenrec": ("Below is an", f"### Input:\n{spaced[0]}, {spaced[1]}\n\n### Response:"),
        "plain": ("<a_3>", f"{one}{two}"),
    }
    text = rendered(catalog, prompts, [named(project, item) for item in HISTORY]).text or ""
    begin, within = expected[project]
    assert begin in text and within in text
    assert text.startswith(begin) or project == "minionerec"


def test_scoring_is_as_evaluation_defines_it(imported: tuple[str, Path, str]) -> None:
    project, out, _ = imported
    fields = json.loads((out / "catalog.json").read_text()).get("scoring", {})
    assert (
        fields
        == {
            "minionerec": {"tail": ["\n", END], "length_penalty": 0.0},
            "lcrec": {"tail": [END], "length_penalty": 1.0},
            "onerec-think": {"head": ["<|sid_begin|>"], "tail": ["<|sid_end|>", END], "length_penalty": 1.0},
            "openonerec": {"length_penalty": 0.0},
            "genrec": {"tail": [END], "length_penalty": 0.0},
            "unigenrec": {"tail": [END], "length_penalty": 1.0},
            "plain": {},
        }[project]
    )


@pytest.mark.parametrize(("field", "first"), [("count", "920"), ("count_after_downsample", "904")])
def test_the_first_item_of_a_sid_is_the_most_popular(field: str, first: str, tmp_path: Path) -> None:
    root = folders.openonerec(tmp_path / "project")
    assert main(["import", str(root), "--out", str(tmp_path / "out"), "--popularity", field]) == 0
    catalog, _ = served(tmp_path / "out")
    leaf = int(leaves(catalog, ["904"])[0])
    assert catalog.items_ofleaves([leaf])[0][0] == first
