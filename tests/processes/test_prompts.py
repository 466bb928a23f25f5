"""Requests whose prompts a template or a chat template makes have the answers of those token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from items import Items
from sameness import assert_identical
from shared_templates import deployment_of
from tokenizers import Tokenizer

from xgr_runtime.client import ChatMessage, XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import BadRequest

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
