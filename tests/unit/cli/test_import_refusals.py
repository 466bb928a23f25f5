"""Wrong folders, wrong declarations: each ends in one line that names what to change; nothing is written."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import project_folders as folders
import pytest
from project_folders import ITEMS, MARKS, PROJECTS, all_letters, checkpoint, letters, write_json, write_table

from xgr_runtime.cli import main

Argv = list[str]
Change = Callable[[Path], Argv | None]


def edit(path: str, change: Callable[[Any], Any]) -> Change:
    """Rewrites a JSON file of the project."""

    def run(root: Path) -> None:
        value = json.loads((root / path).read_text())
        write_json(root / path, change(value) or value)

    return run


def replace(path: str, old: str, new: str) -> Change:
    def run(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return run


def argv(*flags: str) -> Change:
    return lambda root: [flag.replace("ROOT", str(root)) for flag in flags]


def remade(folder: str, tokens: list[str], **config: Any) -> Change:
    """Another checkpoint in that folder."""

    def run(root: Path) -> None:
        checkpoint(root / folder, tokens, **config)

    return run


MINI = "data/Amazon/index/Toys.index.json"
INFO = "data/Amazon/info/Toys_5_2016-10-2018-11.txt"
TEST = "data/Amazon/test/Toys_5_2016-10-2018-11.csv"
FINAL = "output/final_checkpoint"
LC = "data/Toys/Toys"
THINK = "data/Toys.pretrain.json"
BOOK = "datasets/Toys/codebooks/Toys.text.rqvae.codebook.json"
COUNTS = "raw_data/benchmark_data/sid2pid.json"
PIDS = "raw_data/video_ad_pid2sid.parquet"


def _two_datasets(root: Path) -> None:
    write_json(root / "data/Amazon/index/Books.index.json", {"1": letters((1, 2, 3))})


def _pids(sid: Callable[[int], Any], item: Callable[[int], int] = int) -> Change:
    def run(root: Path) -> None:
        write_table(root / PIDS, [{"pid": item(900 + n), "sid": sid(n)} for n in range(len(ITEMS))])

    return run


def _nameless(root: Path) -> None:
    (root / COUNTS).unlink()
    write_table(root / PIDS, [{"pid": None if n == 0 else n, "sid": [*ITEMS[str(n)]]} for n in range(9)])


def _no_checkpoint(root: Path) -> None:
    for path in sorted(root.rglob("*.safetensors")):
        path.unlink()


def _adapter_alone(root: Path) -> None:
    (root / "model" / "model.safetensors").rename(root / "model" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8, "lora_alpha": 8}
    write_json(root / "model" / "adapter_config.json", settings)


def _shard_missing(root: Path) -> None:
    (root / "model" / "model.safetensors").rename(root / "model" / "part-1.safetensors")
    shards = {"weight": "part-1.safetensors", "other": "part-2.safetensors"}
    write_json(root / "model" / "model.safetensors.index.json", {"weight_map": shards})


def _object_array(root: Path) -> None:
    (root / BOOK).unlink()
    rows = np.empty(2, object)
    rows[:] = [np.array([1, 2]), np.array([1, 2, 3])]
    np.save((root / BOOK).with_name("Toys.text.rqvae.npy"), rows, allow_pickle=True)


def _float_array(root: Path) -> None:
    (root / BOOK).unlink()
    np.save((root / BOOK).with_name("Toys.text.rqvae.npy"), np.ones((3, 3)))


def _foreign_messages(root: Path) -> None:
    text = "<|sid_begin|><s_a_7000><s_b_1><s_c_1><|sid_end|>"
    rows = [{"messages": json.dumps([{"role": "user", "content": text}])}]
    write_table(root / "raw_data/benchmark_data/video/video_test.parquet", rows)


def _count_missing(value: Any) -> None:
    next(iter(value.values()))[0].pop("count")


REFUSED: dict[str, tuple[str, Change, str]] = {
    # The wrong tokenizer, or tokens that it lacks.
    "tokenizer of another project": (
        "minionerec",
        remade(FINAL, all_letters(form="<s_{letter}_{code}>")),
        r"<[abc]_\d>.*unknown.*checkpoint that the SIDs were made for",
    ),
    "a level the tokenizer lacks": (
        "lcrec",
        remade("ckpt/checkpoint-10", all_letters(2)),
        r"Toys.index.json.*item '\d+'.*<c_\d>",
    ),
    "head tokens that it lacks": (
        "onerec-think",
        remade("results", [*all_letters(form="<s_{letter}_{code}>"), *MARKS[:2]]),
        r"sid_begin",
    ),
    "begin of a SID that it lacks": (
        "openonerec",
        remade("model", [*all_letters(form="<s_{letter}_{code}>"), *MARKS[:2]]),
        r"sid_begin",
    ),
    "codebook of another model": (
        "unigenrec",
        remade("ckpt", all_letters()),
        r"neither <SID_0_\d> nor <L0_\d>.*--model-path",
    ),
    "a vocabulary that is too small": (
        "plain",
        remade("model", all_letters(), vocab_size=275),
        r"out of vocabulary",
    ),
    "no end token": (
        "minionerec",
        replace(f"{FINAL}/tokenizer_config.json", '"eos_token"', '"cls_token"'),
        r"names no eos_token",
    ),
    # Codes and levels.
    "codes as ids": (
        "plain",
        edit("index.json", lambda rows: {i: [int(t[3:-1]) for t in s] for i, s in rows.items()}),
        r"integers.*--sid-format",
    ),
    "codes that are pieces of text": (
        "plain",
        edit("index.json", lambda rows: {i: [90 + n for n in range(3)] for i in rows}),
        r"piece of text.*--sid-format",
    ),
    "a missing level": (
        "minionerec",
        edit(MINI, lambda rows: rows["7"].pop() and None),
        r"Toys.index.json.*item '7' has 2 levels.*as many",
    ),
    "depth that differs between files": (
        "minionerec",
        edit(MINI, lambda rows: {i: s[:2] for i, s in rows.items()}),
        r"Toys_5.*has the SID.*one run",
    ),
    "a codebook with a gap": (
        "unigenrec",
        edit(BOOK, lambda rows: rows.update({"3": "<L0_1> <L2_1>"})),
        r"row '3'.*without a gap",
    ),
    "more levels than there may be": (
        "unigenrec",
        edit(BOOK, lambda rows: {"0": " ".join(f"<L{n}_1>" for n in range(17))}),
        r"<SID_0_1>|depth must be 1 to 8",
    ),
    "codes per level that do not fit": (
        "openonerec",
        argv("--sid-packed", "16,16,16"),
        r"sid2pid.json.*--sid-packed",
    ),
    "codes per level that give others": (
        "openonerec",
        argv("--sid-packed", "99999,8000,8192"),
        r"sid2pid.json.*pid 9\d\d.*--sid-packed",
    ),
    "spelling with too few codes": (
        "openonerec",
        argv("--sid-format", "<s_a_{0}><s_b_{1}>"),
        r"sid_format has 2",
    ),
    "a SID without begin and end": (
        "onerec-think",
        edit(THINK, lambda rows: rows["4"].update(sid="<s_a_1><s_b_1><s_c_1>")),
        r"item '4'.*begin with <\|sid_begin\|>",
    ),
    "negative codes": ("openonerec", _pids(lambda n: [-1, n % 8, 0]), r"--sid-packed|codes \[-1"),
    # Items.
    "an item twice": ("minionerec", replace(MINI, '"7":', '"8":'), r"Toys"),
    "a plain item twice": (
        "plain",
        replace("index.json", '"7":', '"8":'),
        r"index.json.*item '8' is a duplicate",
    ),
    "a pid twice": (
        "openonerec",
        _pids(lambda n: [*ITEMS[str(n)]], lambda pid: max(pid, 901)),
        r"duplicate|sid2pid",
    ),
    "an empty index": ("plain", edit("index.json", lambda rows: rows.clear()), r"empty"),
    "an item that is no name": ("openonerec", _nameless, r"row 1.*item None"),
    "a popularity that is no number": (
        "openonerec",
        edit(COUNTS, lambda counts: next(iter(counts.values()))[0].update(count=float("nan"))),
        r"popularity is nan",
    ),
    "a title that is no text": (
        "onerec-think",
        replace(THINK, '"Title 3"', r'"\ud800"'),
        r"item '3'.*not valid Unicode",
    ),
    # Files that do not belong together.
    "an info file that disagrees": (
        "minionerec",
        replace(INFO, "<a_3>", "<a_4>"),
        r"Toys_5.*txt: line.*item '3'.*one run",
    ),
    "an info file with a stranger": (
        "minionerec",
        replace(INFO, "Title 3\t3\n", "Title 3\t333\n"),
        r"item '333'.*no such item",
    ),
    "a test table of another run": (
        "minionerec",
        replace(TEST, "<a_3>", "<a_4>"),
        r"csv: row 1, item '3'.*another dataset or run",
    ),
    "a test table that is damaged": (
        "minionerec",
        replace(TEST, "[3, 5]", "[3, 5"),
        r"csv: row 1 cannot be read",
    ),
    "interactions of another dataset": (
        "lcrec",
        edit(f"{LC}.inter.json", lambda users: users["1"].append(777)),
        r"inter.json: user '1' has item 777",
    ),
    "interactions of another form": (
        "lcrec",
        edit(f"{LC}.inter.json", lambda users: users.update({"2": "3 4"})),
        r"user '2'.*list of items",
    ),
    "a test set of another dataset": (
        "genrec",
        replace("data/Toys/sft/test.json", "<a_5>", "<a_6>"),
        r"sft/test.json: the SID <a_6>.*another dataset",
    ),
    "messages of another release": (
        "openonerec",
        _foreign_messages,
        r"video_test.parquet: none of its 1 SIDs.*another release",
    ),
    "counts of another release": (
        "openonerec",
        edit(COUNTS, lambda c: c.update({"5": c.pop(next(iter(c)))})),
        r"sid2pid.json: the SID 5 .*one release",
    ),
    "a count that is not there": (
        "openonerec",
        argv("--popularity", "clicks"),
        r"'clicks' \(it has count, .*--popularity",
    ),
    "a count missing for one item": (
        "openonerec",
        edit(COUNTS, _count_missing),
        r"no number 'count'.*--popularity",
    ),
    # Which checkpoint, which dataset, which project.
    "several datasets": ("minionerec", _two_datasets, r"several catalogs.*--dataset"),
    "a dataset that is not there": (
        "minionerec",
        argv("--dataset", "Bikes"),
        r"--dataset 'Bikes'.*Toys.index.json",
    ),
    "no checkpoint": ("plain", _no_checkpoint, r"no checkpoint.*--model-path"),
    "several checkpoints": (
        "plain",
        remade("other", all_letters()),
        r"several checkpoints.*model.*other|other.*model.*--model-path",
    ),
    "a checkpoint that is none": (
        "plain",
        argv("--model-path", "ROOT/nowhere"),
        r"--model-path.*no config.json",
    ),
    "an adapter without its base": (
        "plain",
        _adapter_alone,
        r"adapter alone, of 'org/base'.*--base-model-path",
    ),
    "a shard that is not there": ("plain", _shard_missing, r"part-2.safetensors is named in"),
    "an encoder": (
        "lcrec",
        remade(
            "ckpt/checkpoint-10",
            all_letters(),
            is_encoder_decoder=True,
            architectures=["T5ForConditionalGeneration"],
        ),
        r"T5ForConditionalGeneration has an encoder.*--model-path",
    ),
    "another project's files": ("plain", argv("--as", "onerec-think"), r"pretrain.json"),
    "data that is not there": ("plain", argv("--data", "ROOT/nowhere"), r"no such file or folder"),
    "a pickled codebook": ("unigenrec", _object_array, r"pickles are not read"),
    "a codebook of numbers with a point": ("unigenrec", _float_array, r"must be integers"),
}


@pytest.fixture(autouse=True)
def no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a port was opened")

    monkeypatch.setattr(socket.socket, "bind", refuse)


def refusal(argv: Argv, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with 2."""
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    return line


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_and_nothing_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, change, words = REFUSED[case]
    root = PROJECTS[project](tmp_path / "project")
    flags = change(root) or []
    line = refusal(["import", str(root), "--out", str(tmp_path / "out"), *flags], capsys)
    assert re.search(words, line), line
    assert len(line) < 900 and "/." not in line
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


DECLARED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown field": (lambda c: c.update(templets={}), r"templets"),
    "a text that is none": (lambda c: c["templates"]["default"].update(text=5), r"templates.default.*text"),
    "a title where items have none": (lambda c: c["templates"]["default"].update(item="{title}"), r"title"),
    "an attribute that no item has": (lambda c: c["templates"]["default"].update(item="{colour}"), r"colour"),
    "a brace too many": (lambda c: c["templates"]["default"].update(text="{history}}"), r"brace|\}"),
    "a template of two kinds": (lambda c: c["templates"]["default"].update(messages=[]), r"templates"),
    "a chat template that is not there": (
        lambda c: c["templates"].update(chat={"messages": [], "chat_template": "no.jinja"}),
        r"no.jinja",
    ),
    "a default that is no template": (lambda c: c.update(default_template="best"), r"best"),
    "no item at all": (lambda c: c["templates"]["default"].update(max_history_items=0), r"max_history_items"),
    "a head that the tokenizer lacks": (lambda c: c.update(scoring={"head": ["<|begin|>"]}), r"<\|begin\|>"),
    "a tail that the tokenizer lacks": (lambda c: c.update(scoring={"tail": ["<|bye|>"]}), r"<\|bye\|>"),
    "a tail of several tokens": (lambda c: c.update(scoring={"tail": ["the end of it"]}), r"the end of it"),
    "a head beyond the vocabulary": (lambda c: c.update(scoring={"head": [99999]}), r"99999"),
    "an unknown score mode": (lambda c: c.update(scoring={"score_mode": "best"}), r"score_mode"),
    "a penalty that is no number": (lambda c: c.update(scoring={"length_penalty": "1"}), r"length_penalty"),
    "a penalty of nothing": (lambda c: c.update(scoring={"repetition_penalty": 0.0}), r"repetition_penalty"),
    "ranges for too few levels": (
        lambda c: c.update(scoring={"level_tokens": [[260, 280]], "score_mode": "level"}),
        r"level_tokens",
    ),
    "codes declared, tokens given": (lambda c: c.update(sid_format="<a_{0}><a_{0}>"), r"sid_format"),
    "sizes of too few levels": (
        lambda c: c.update(sid_format="<a_{0}><b_{1}><c_{2}>", sid_packed=[8, 8]),
        r"sid_packed",
    ),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_wrong_catalog_json_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = DECLARED[case]
    root = folders.plain(tmp_path / "project")
    fields = {"templates": {"default": {"text": "Saw {history}", "item": "{sid}", "separator": ", "}}}
    change(fields)
    write_json(root / "catalog.json", fields)
    line = refusal(["import", str(root), "--out", str(tmp_path / "out")], capsys)
    assert re.search(words, line), line
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_only_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = folders.plain(tmp_path / "project"), tmp_path / "out"
    command = ["import", str(root), "--out", str(out)]
    assert main(command) == 0
    assert "--force" in refusal(command, capsys)
    (out / "serve.toml").write_text("# by hand\n")
    assert main([*command, "--force"]) == 0
    assert "model-path" in (out / "serve.toml").read_text()
    (out / "notes.txt").write_text("mine")
    assert "notes.txt, which no import wrote" in refusal([*command, "--force"], capsys)
    assert "notes.txt" in {path.name for path in out.iterdir()}
    assert main(["import", str(root), "--out", str(tmp_path / "a" / "b")]) == 2
