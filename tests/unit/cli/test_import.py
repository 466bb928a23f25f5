"""`xgr import`: a folder as training leaves it becomes what a server takes, with evaluation's prompts."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import project_folders as folders
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from project_folders import END, ITEMS, PROJECTS

from xgr_runtime.catalog import Catalog, load_catalog, vocabulary
from xgr_runtime.cli import main
from xgr_runtime.cli.imports import write
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
        assert "".join(tokenizer.id_to_token(token) or "" for token in sid) == spelt(project, item)


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
    assert catalog.items_of_leaves([leaf])[0][0] == first


def _messages(path: Path) -> list[list[dict[str, object]]]:
    return [json.loads(row["messages"]) for row in pq.read_table(path).to_pylist()]


def _cases(kit: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (KITS / kit / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def of_kits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Catalog, Prompts]]:
    """`of(kit)`: catalog and prompts after `xgr import` of the folder that the kit's project leaves."""
    if not KITS.is_dir():
        pytest.skip("needs XGR_TEST_DATA with kits/")

    read_once = functools.cache(read_tokenizer)  # real ones are megabytes, and are asked for at each step

    @functools.cache
    def of(kit: str) -> tuple[Catalog, Prompts]:
        folder = tmp_path_factory.mktemp(kit)
        root = folders.of_kit(KITS, kit, folders.unpack(KITS, kit, folder / "unpacked"), folder / "project")
        with pytest.MonkeyPatch.context() as patch:
            for module in (vocabulary, write, sys.modules[__name__]):
                patch.setattr(module, "read_tokenizer", read_once)
            assert main(["import", str(root), "--out", str(folder / "out")]) == 0
            return served(folder / "out")

    return of


@pytest.mark.parametrize(
    ("kit", "name", "users"),
    [
        ("minionerec", "cases", 30),
        ("onerec-think", "cases", 30),
        ("onerec-think", "cases_think", 20),
        ("lcrec", "cases", 30),
        ("lcrec", "cases_17prompts", 34),
        ("openonerec", "cases", 30),
    ],
)
def test_prompts_of_kits_have_the_ids_of_evaluation(
    kit: str, name: str, users: int, of_kits: Callable[[str], tuple[Catalog, Prompts]]
) -> None:
    catalog, prompts = of_kits(kit)
    cases = _cases(kit, name)
    assert len(cases) == users
    spoken = KITS / kit / "data" / "benchmark_data" / "video" / "video_test.parquet"
    for row, case in enumerate(cases):
        if kit == "openonerec":
            found = prompts.of_messages(catalog, None, _messages(spoken)[row], {}, 8192)
        else:
            number = case.get("prompt", 0)
            template = "think" if "thought" in case else f"prompt-{number}" if number else None
            thought = {"thought": case["thought"]} if "thought" in case else {}
            found = rendered(catalog, prompts, case["history"], template, **thought)
        assert found.tokens.tolist() == case["prompt_ids"], row


def test_items_on_one_sid_of_a_kit_come_as_its_evaluation_orders_them(
    of_kits: Callable[[str], tuple[Catalog, Prompts]],
) -> None:
    catalog, _ = of_kits("openonerec")
    leaf_of = {tuple(sid): leaf for leaf, sid in enumerate(catalog.sids.tolist())}
    several = 0
    for case in _cases("openonerec", "cases"):
        for (sid, _), pid in zip(case["beams"], case["pids"], strict=True):
            leaf = leaf_of.get(tuple(sid))
            assert (leaf is None) == (not pid)
            if leaf is not None:
                items = catalog.items_of_leaves([leaf])[0]
                several += len(items) > 1
                assert items[0] == str(pid)
    assert several


@pytest.mark.parametrize("kit", ["minionerec", "onerec-think", "lcrec", "openonerec"])
def test_catalogs_of_kits_hold_their_items(
    kit: str, of_kits: Callable[[str], tuple[Catalog, Prompts]]
) -> None:
    catalog, _ = of_kits(kit)
    assert (catalog.items, catalog.leaves, catalog.depth) == {
        "minionerec": (3686, 3670, 3),
        "onerec-think": (1500, 1487, 4),
        "lcrec": (9922, 9897, 4),
        "openonerec": (3459, 3444, 3),
    }[kit]
