"""Requests whose prompts a template or a chat template makes have the answers of those token ids."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from items import Items
from sameness import assert_identical, assert_same
from shared_templates import deployment_of
from tokenizers import Tokenizer

from xgr_runtime.client import ChatMessage, XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import BadRequest

KIT = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "kits/openonerec"

CHAT = "{% for m in messages %}{{ m.content }}{% if not loop.last %}{{ between }}{% endif %}{% endfor %}"
TEMPLATES = {
    "default": {"text": "{history}", "max_history_items": 4},
    "profiled": {"text": "{profile}{history.seen}{history.bought}", "defaults": {"profile": ""}},
    "talk": {"chat_template": "talk.jinja", "chat_template_kwargs": {"between": ""}},
}


def served(folder: Path, model: Path, templates: dict[str, Any], **files: str) -> Iterator[XgrClient]:
    """A deployment of the catalog in `folder`, whose templates and their files are written here."""
    (folder / "catalog.json").write_text(json.dumps({"templates": templates}))
    for name, text in files.items():
        (folder / f"{name}.jinja").write_text(text)
    (source,) = (path for path in folder.iterdir() if path.suffix in (".jsonl",) or path.stem == "index")
    config = ServeConfig(
        model_path=str(model),
        catalog=str(source),
        port=0,
        dtype="float32",
        kv_bytes=64 << 20,
        log_level="WARNING",
    )
    with deployment_of(config) as running, XgrClient(running.url, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def templated(
    checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XgrClient]:
    folder = tmp_path_factory.mktemp("templated")
    shutil.copy(catalog_source, folder)
    yield from served(folder, checkpoint, TEMPLATES, talk=CHAT)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def spelt(items: Items, tokenizer: Tokenizer, history: list[str]) -> str:
    return "".join(tokenizer.id_to_token(token) or "" for item in history for token in items.sids[item])


def test_templates_and_messages_give_the_answers_of_their_tokens(
    templated: XgrClient, items: Items, tokenizer: Tokenizer, users: list[list[str]]
) -> None:
    for history in users[3:9:2]:
        profile, seen, bought = (
            spelt(items, tokenizer, some) for some in (history[:1], history[1:], history[:2])
        )
        whole = tokenizer.encode(profile + seen + bought).ids
        right = templated.generate(input_ids=whole, beam_width=20)
        assert right.meta_info.prompt_tokens == len(whole)
        by_template = templated.generate(
            template="profiled",
            variables={"profile": profile},
            history={"seen": history[1:], "bought": history[:2]},
            beam_width=20,
        )
        assert_identical(by_template, right)
        talk: list[ChatMessage] = [
            {"role": "system", "content": profile},
            {"role": "user", "content": [{"type": "text", "text": seen + bought}]},
        ]
        alone = tokenizer.encode(profile + seen + bought, add_special_tokens=False).ids
        by_messages = templated.generate(messages=talk, template="talk", beam_width=20)
        assert by_messages.meta_info.prompt_tokens == len(alone)
        assert_identical(by_messages, templated.generate(input_ids=alone, beam_width=20))


def test_the_default_template_counts_what_it_leaves_out(
    templated: XgrClient, items: Items, tokenizer: Tokenizer, users: list[list[str]]
) -> None:
    history = max(users, key=len)
    answer = templated.generate(history=history, beam_width=10, exclude_history=True)
    assert answer.meta_info.dropped_items == len(history) - 4
    tokens = tokenizer.encode(spelt(items, tokenizer, history[-4:])).ids
    assert_identical(answer, templated.generate(input_ids=tokens, beam_width=10, deny=history))
    with pytest.raises(BadRequest, match="default, profiled, talk"):
        templated.generate(history=history, template="no")


# --- a public project's prompts, whose wording differs from request to request --------------------------

# What its evaluation gives to the model: no thinking asked for, and none in the answer.
SWITCH = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% if loop.last and not think %}/no_think{% elif loop.last %}/think{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
    "{% if not think %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
OPENONEREC = {"default": {"chat_template": "switch.jinja", "generation_prefix": "<|sid_begin|>"}}


@pytest.fixture(scope="module")
def openonerec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XgrClient]:
    folder, kit = tmp_path_factory.mktemp("openonerec"), tmp_path_factory.mktemp("kit")
    subprocess.run([sys.executable, KIT.parent / "unpack.py", KIT, kit], check=True, capture_output=True)
    (folder / "items.jsonl").write_bytes(lzma.decompress((KIT / "today/items.jsonl.xz").read_bytes()))
    yield from served(folder, kit / "model", OPENONEREC, switch=SWITCH)


@pytest.mark.skipif(not KIT.is_dir(), reason="needs XGR_TEST_DATA with kits/")
def test_messages_of_a_public_project(openonerec: XgrClient, threads: ThreadPoolExecutor) -> None:
    """Its own prompts token by token, and the lists of an exact search over them."""
    import pyarrow.parquet as pq

    rows = pq.read_table(KIT / "data/benchmark_data/video/video_test.parquet")["messages"].to_pylist()
    cases = [json.loads(line) for line in (KIT / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == len(cases) == 30

    def ask(row: str) -> Any:
        return openonerec.generate(messages=json.loads(row), beam_width=32)

    for answer, case in zip(threads.map(ask, rows), cases, strict=True):
        assert answer.meta_info.prompt_tokens == len(case["prompt_ids"])
        right = [(tuple(sid), score) for sid, score in case["constrained_w32"]]
        assert_same(answer, right, 3e-4)
