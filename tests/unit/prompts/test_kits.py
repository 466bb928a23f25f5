"""Prompts of public projects, where the folder of real data has them: the ids that their own code made."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from xgr_runtime.catalog import Catalog, build_catalog
from xgr_runtime.prompts import Prompts
from xgr_runtime.tokenizer import read_tokenizer

KITS = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "kits"
pytestmark = pytest.mark.skipif(not KITS.is_dir(), reason="needs XGR_TEST_DATA with kits/")

MINIONEREC = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. \n\n### Instruction:\nCan you predict "
    "the next possible item that the user may expect?\n\n### User Input: \nCan you predict the next possible "
    "item the user may expect, given the following chronological interaction history: {history}"
    "\n\n### Response:\n"
)
LCREC = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nThe user has interacted with items {history} in chronological order. "
    "Can you predict the next possible item that the user may expect?\n\n### Response:"
)
THINK_SYSTEM = (
    "You are a professional recommendation expert who needs to recommend the next possible purchase for "
    "users based on their purchase history. Please predict the most likely next product that the user will "
    "purchase based on the user's historical purchase information."
)
THINK_USER = "The user has purchased the following items: {history};"
# The project's own chat template is not at hand: this one gives its texts.
SOFT_SWITCH = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- else %}{%- for part in message.content if part.type == 'text' %}{{- part.text }}{%- endfor %}{%- endif %}
{%- if loop.last and message.role == 'user' %}{{- '/think' if enable_thinking else '/no_think' }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
{%- if not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
"""


def read(kit: str, cases: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (KITS / kit / f"{cases}.jsonl").read_text().splitlines()]


@lru_cache(1)
def unpacked(kit: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=kit))
    atexit.register(shutil.rmtree, folder)
    subprocess.run([sys.executable, KITS / "unpack.py", KITS / kit, folder], check=True, capture_output=True)
    return folder


def made(
    kit: str, folder: Path, index: dict[str, Any], fields: dict[str, Any], model: str = "model"
) -> tuple[Catalog, Prompts]:
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "catalog.json").write_text(json.dumps(fields))
    checkpoint = unpacked(kit) / model
    catalog = build_catalog(folder / "index.json", checkpoint)
    prompts = Prompts.read(read_tokenizer(checkpoint), checkpoint)
    prompts.check(catalog)
    return catalog, prompts


def shown(catalog: Catalog, prompts: Prompts, row: dict[str, Any], name: str | None = None) -> list[int]:
    leaves = catalog.leaves_of_items(row["history"])
    variables = {"thought": row["thought"]} if "thought" in row else {}
    found = prompts.of_history(catalog, name, {"": leaves}, variables, 8192)
    ids: list[int] = found.tokens.tolist()
    return ids


def lcrec_index() -> Any:
    return json.loads((KITS / "lcrec/data/Instruments/Instruments.index.json").read_text())


def test_minionerec(tmp_path: Path) -> None:
    index = json.loads((KITS / "minionerec/data/Industrial_and_Scientific.index.json").read_text())
    template = {"text": MINIONEREC, "separator": ", "}
    catalog, prompts = made("minionerec", tmp_path, index, {"templates": {"default": template}})
    rows = read("minionerec", "cases")
    assert [shown(catalog, prompts, row) for row in rows] == [row["prompt_ids"] for row in rows]


@pytest.mark.parametrize(("model", "cases"), [("model", "cases"), ("adapter", "cases_lora")])
def test_lcrec(model: str, cases: str, tmp_path: Path) -> None:
    template = {"text": LCREC, "separator": ", ", "max_history_items": 20}
    catalog, prompts = made("lcrec", tmp_path, lcrec_index(), {"templates": {"only": template}}, model)
    rows = read("lcrec", cases)
    assert [shown(catalog, prompts, row) for row in rows] == [row["prompt_ids"] for row in rows]


def test_lcrec_seventeen_prompts(tmp_path: Path) -> None:
    """Named templates. The cases' texts are read back from ids, with blanks around the SIDs."""
    rows = read("lcrec", "cases_17prompts")
    templates = {}
    for row in rows:
        text = re.sub(r"  <a_.*<d_\d+>", "  {history}", row["prompt_text"].removeprefix("<s>"))
        text = re.sub(r"  ?\{history\}", " {history}", re.sub(r"\{history\} +(?=[.,?])", "{history}", text))
        templates[str(row["prompt"])] = {"text": text, "separator": ", ", "max_history_items": 20}
    assert len(templates) == 17
    catalog, prompts = made("lcrec", tmp_path, lcrec_index(), {"templates": templates})
    found = [shown(catalog, prompts, row, str(row["prompt"])) for row in rows]
    assert found == [row["prompt_ids"] for row in rows]


def think_index() -> dict[str, Any]:
    items = json.loads((KITS / "onerec-think/data/Games.pretrain.json").read_text())
    return {
        key: {"sid": re.sub(r"<\|sid_(begin|end)\|>", "", item["sid"]), "title": item["title"]}
        for key, item in items.items()
    }


def test_onerec_think(tmp_path: Path) -> None:
    """As one text, and as messages for the checkpoint's own chat template with the thought behind."""
    chat = f"<|im_start|>system\n{THINK_SYSTEM}<|im_end|>\n<|im_start|>user\n{THINK_USER}<|im_end|>\n"
    items = {"item": "<|sid_begin|>{sid}<|sid_end|>", "separator": "; "}
    text = f"{chat}<|im_start|>assistant\n<think>\n{{thought}}\n</think>\n"
    messages = [{"role": "system", "content": THINK_SYSTEM}, {"role": "user", "content": THINK_USER}]
    fields = {
        "default": {"text": text, "defaults": {"thought": ""}, **items},
        "chat": {"messages": messages, "generation_prefix": "<think>\n\n</think>\n", **items},
    }
    catalog, prompts = made("onerec-think", tmp_path, think_index(), {"templates": fields})
    for cases in ("cases", "cases_think"):
        rows = read("onerec-think", cases)
        assert [shown(catalog, prompts, row) for row in rows] == [row["prompt_ids"] for row in rows]
    rows = read("onerec-think", "cases")
    assert [shown(catalog, prompts, row, "chat") for row in rows] == [row["prompt_ids"] for row in rows]


def test_openonerec(tmp_path: Path) -> None:
    """Messages that requests carry: their wording differs."""
    parquet = pytest.importorskip("pyarrow.parquet")
    users = parquet.read_table(KITS / "openonerec/data/benchmark_data/video/video_test.parquet").to_pylist()
    (tmp_path / "soft_switch.jinja").write_text(SOFT_SWITCH)
    template = {"chat_template": "soft_switch.jinja", "generation_prefix": "<|sid_begin|>"}
    index = {"1": ["<s_a_1>", "<s_b_1>", "<s_c_1>"], "2": ["<s_a_2>", "<s_b_1>", "<s_c_1>"]}
    catalog, prompts = made("openonerec", tmp_path, index, {"templates": {"chat": template}})
    rows = read("openonerec", "cases")
    assert len(users) == len(rows)
    for user, row in zip(users, rows, strict=True):
        messages = json.loads(user["messages"])
        found = prompts.of_messages(catalog, None, messages, {}, 8192)
        assert (found.text, found.tokens.tolist()) == (row["prompt_text"], row["prompt_ids"])
        thinking = prompts.of_messages(catalog, "chat", messages, {"enable_thinking": True}, 8192)
        assert thinking.text == row["prompt_text_think"] + "<|sid_begin|>"
