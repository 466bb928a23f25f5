"""`xgr import`: a folder as training leaves it becomes what a server takes, with evaluation's prompts."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
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
from xgr_runtime.checkpoint import described
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
    with described(Path(config.model_path), config.base_model_path) as model:
        catalog = load_catalog(config.catalog, model)
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
        "openonerec": [
            "OpenOneRec",
            "popularity (count)",
            "most frequent of 1 wordings",
            "--messages ",
            "do_sample=True",
        ],
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


def test_paths_lead_there_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.minionerec(tmp_path / "work" / "project")
    monkeypatch.chdir(tmp_path / "work")
    assert main(["import", "project", "--out", "out"]) == 0
    monkeypatch.chdir(tmp_path)
    config = settings(tmp_path / "work" / "out")
    assert Path(config.model_path) == tmp_path / "work" / "project" / "output" / "final_checkpoint"
    assert Path(config.catalog).is_absolute() and config.max_beam_width == 128
    assert served(tmp_path / "work" / "out")[0].items == len(ITEMS)


def test_data_and_checkpoint_may_lie_apart(tmp_path: Path) -> None:
    root = folders.lcrec(tmp_path / "project")
    (root / "ckpt").rename(tmp_path / "models")
    flags = ["--model-path", str(tmp_path / "models" / "checkpoint-9"), "--out", str(tmp_path / "out")]
    assert main(["import", str(root / "data" / "Toys"), *flags]) == 0
    flags = ["--data", str(root), "--out", str(tmp_path / "two")]
    assert main(["import", str(tmp_path / "models"), *flags]) == 0
    assert settings(tmp_path / "out").model_path.endswith("checkpoint-9")
    assert settings(tmp_path / "two").model_path.endswith("checkpoint-10")
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == (tmp_path / "two" / "items.jsonl").read_bytes()


def test_links_in_a_circle_and_indexes_of_weights_mislead_nobody(tmp_path: Path) -> None:
    root = folders.lcrec(tmp_path / "project")
    (root / "data" / "again").symlink_to(root)
    folders.write_json(root / "ckpt" / "checkpoint-10" / "model.safetensors.index.json", {"weight_map": {}})
    assert main(["import", str(root), "--out", str(tmp_path / "out")]) == 0
    assert served(tmp_path / "out")[0].items == len(ITEMS)


def test_the_catalog_of_an_encoder_can_be_had_for_a_decoder(tmp_path: Path) -> None:
    root = folders.letter(tmp_path / "project")
    model = folders.checkpoint(tmp_path / "decoder", folders.all_letters())
    command = ["import", str(root), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert main([*command, "--model-path", str(model), "--as", "letter"]) == 0
    catalog, prompts = served(tmp_path / "out")
    history = ["3"] * 30
    found = rendered(catalog, prompts, history)
    assert found.text == spelt("lcrec", "3") * 20 and found.dropped == 10


def test_what_to_do_next_can_be_typed_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "to be served"
    assert main(["import", str(folders.minionerec(tmp_path / "project")), "--out", str(out)]) == 0
    said = capsys.readouterr().out.partition("next ")[2]
    commands = [shlex.split(line.partition("  (")[0]) for line in said.strip().splitlines()]
    assert commands == [
        ["xgr", "verify", str(out), "--cases", "FILE", "--dtype", "float32", "--serve"],
        ["xgr", "verify", str(out), "--reference", "20", "--dtype", "float32", "--serve"],
        ["xgr", "serve", "--config", str(out / "serve.toml")],
    ]


def test_one_of_several_datasets_is_taken_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folders.minionerec(tmp_path / "project")
    for path in sorted((root / "data").rglob("Toys*")):
        other = path.with_name(path.name.replace("Toys", "Toys_and_Games"))
        other.write_text(path.read_text().replace("<a_0>", "<a_1>").replace("_0>", "_1>"))
    assert main(["import", str(root), "--out", str(tmp_path / "out"), "--dataset", "Toys"]) == 0
    assert "no item has" not in capsys.readouterr().out
    assert served(tmp_path / "out")[0].items == len(ITEMS)
    assert main(["import", str(root), "--out", str(tmp_path / "two"), "--dataset", "Toys_and_Games"]) == 0
    assert "the tokenizer has 3 SID tokens that no item has, such as <a_0>" in capsys.readouterr().out


def test_an_array_of_codes_is_the_codebook_that_its_text_is(tmp_path: Path) -> None:
    root = folders.unigenrec(tmp_path / "project")
    assert main(["import", str(root), "--out", str(tmp_path / "text")]) == 0
    [text] = root.rglob("*.codebook.json")
    text.unlink()
    assert main(["import", str(root), "--out", str(tmp_path / "array")]) == 0
    assert (tmp_path / "text" / "items.jsonl").read_bytes() == (
        tmp_path / "array" / "items.jsonl"
    ).read_bytes()


def test_counts_alone_give_the_codes_of_their_items(tmp_path: Path) -> None:
    root = folders.openonerec(tmp_path / "project")
    assert main(["import", str(root), "--out", str(tmp_path / "both")]) == 0
    [table] = root.rglob("*pid2sid.parquet")
    table.unlink()
    assert main(["import", str(root), "--out", str(tmp_path / "counts")]) == 0
    rows = [sorted((tmp_path / out / "items.jsonl").read_text().splitlines()) for out in ("both", "counts")]
    assert rows[0] == rows[1] and len(rows[0]) == len(ITEMS)


def test_what_a_plain_table_declares_beside_it_counts(tmp_path: Path) -> None:
    root = folders.plain(tmp_path / "project")
    codes = {item: {"code": list(sid), "name": f"Title {item}"} for item, sid in ITEMS.items()}
    folders.write_json(root / "index.json", codes)
    (root / "mine.jinja").write_text("{{ messages[0].content }}!")
    declared = {
        "sid_format": "<a_{0}><b_{1}><c_{2}>",
        "columns": {"sid": "code", "title": "name"},
        "templates": {
            "chat": {"messages": [{"role": "user", "content": "{history}"}], "item": "{title}"},
            "own": {"messages": [{"role": "user", "content": "{history}"}], "chat_template": "mine.jinja"},
        },
        "default_template": "own",
    }
    folders.write_json(root / "catalog.json", declared)
    for _ in range(2):
        assert main(["import", str(root), "--out", str(tmp_path / "out"), "--force"]) == 0
    catalog, prompts = served(tmp_path / "out")
    assert rendered(catalog, prompts, ["3"]).text == spelt("plain", "3") + "!"
    assert rendered(catalog, prompts, ["3"], "chat").text == "[user] Title 3\n[assistant] "


def test_a_table_of_ids_in_parts_keeps_its_template_of_ids(tmp_path: Path) -> None:
    root = folders.plain(tmp_path / "project")
    tokenizer = read_tokenizer(root / "model")
    assert tokenizer is not None
    sids = {
        item: [tokenizer.token_to_id(token) for token in folders.letters(sid)] for item, sid in ITEMS.items()
    }
    (root / "index.json").unlink()
    rows = [{"item": item, "sid": sid} for item, sid in sids.items()]
    folders.write_table(root / "items" / "part-0000.parquet", rows[:9])
    folders.write_table(root / "items" / "part-0001.parquet", rows[9:])
    folders.write_json(
        root / "catalog.json", {"prefix": [5], "separator": [6], "suffix": [7], "max_history_items": 2}
    )
    assert main(["import", str(root), "--out", str(tmp_path / "out"), "--sid-format", "token_ids"]) == 0
    catalog, prompts = served(tmp_path / "out")
    found = rendered(catalog, prompts, ["1", "3", "5"])
    assert found.tokens.tolist() == [5, *sids["3"], 6, *sids["5"], 7] and found.dropped == 1


def _messages(path: Path) -> list[list[dict[str, object]]]:
    return [json.loads(row["messages"]) for row in pq.read_table(path).to_pylist()]


def _cases(kit: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (KITS / kit / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def of_kits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Catalog, Prompts]]:
    """`of(kit)`: catalog and prompts after `xgr import` of the folder that the kit's project leaves."""
    if not KITS.is_dir():
        pytest.skip("needs XGR_TEST_DATA with kits/")

    read_once = functools.cache(read_tokenizer)  # real ones are megabytes, and are asked for at each step

    @functools.cache
    def unpacked(kit: str) -> Path:
        return folders.unpack(KITS, kit, tmp_path_factory.mktemp("unpacked") / kit)

    @functools.cache
    def of(kit: str, lora: bool) -> tuple[Catalog, Prompts]:
        folder = tmp_path_factory.mktemp(kit)
        root = folders.of_kit(KITS, kit, unpacked(kit), folder / "project", lora)
        with pytest.MonkeyPatch.context() as patch:
            for module in (vocabulary, write, sys.modules[__name__]):
                patch.setattr(module, "read_tokenizer", read_once)
            assert main(["import", str(root), "--out", str(folder / "out")]) == 0
            return served(folder / "out")

    return lambda kit, lora=False: of(kit, lora)


@pytest.mark.in_turns("kit", share=4)
@pytest.mark.parametrize(
    ("kit", "name", "users"),
    [
        ("minionerec", "cases", 30),
        ("onerec-think", "cases", 30),
        ("onerec-think", "cases_think", 20),
        ("lcrec", "cases", 30),
        ("lcrec", "cases_17prompts", 34),
        ("lcrec", "cases_lora", 30),
        ("openonerec", "cases", 30),
    ],
)
def test_prompts_of_kits_have_the_ids_of_evaluation(
    kit: str, name: str, users: int, of_kits: Callable[..., tuple[Catalog, Prompts]]
) -> None:
    catalog, prompts = of_kits(kit, lora=name == "cases_lora")
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
    of_kits: Callable[..., tuple[Catalog, Prompts]],
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
def test_catalogs_of_kits_hold_their_items(kit: str, of_kits: Callable[..., tuple[Catalog, Prompts]]) -> None:
    catalog, _ = of_kits(kit)
    assert (catalog.items, catalog.leaves, catalog.depth) == {
        "minionerec": (3686, 3670, 3),
        "onerec-think": (1500, 1487, 4),
        "lcrec": (9922, 9897, 4),
        "openonerec": (3459, 3444, 3),
    }[kit]
