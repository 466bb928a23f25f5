"""Requests whose prompts a template or a chat template makes have the answers of those token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai as openai_errors
import pytest
from items import Items
from openai import OpenAI
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


@contextmanager
def served(folder: Path, model: Path, templates: dict[str, Any], **files: str) -> Iterator[str]:
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
    with deployment_of(config) as running:
        yield running.url


@pytest.fixture(scope="module")
def url(checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("templated")
    shutil.copy(catalog_source, folder)
    with served(folder, checkpoint, TEMPLATES, talk=CHAT) as url:
        yield url


@pytest.fixture(scope="module")
def templated(url: str) -> Iterator[XgrClient]:
    with XgrClient(url, timeout=60.0) as client:
        yield client


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


@pytest.fixture
def openai(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_gets_the_same(
    openai: OpenAI, templated: XgrClient, items: Items, tokenizer: Tokenizer, users: list[list[str]]
) -> None:
    prompts = [spelt(items, tokenizer, history) for history in users[:3]]
    (model,) = openai.models.list()
    asked: dict[str, Any] = {"model": model.id, "temperature": 0, "max_tokens": 8, "n": 5}
    own = {"sampling_params": {"beam_width": 20}}
    answer = openai.completions.create(prompt=prompts, extra_body={"xgr": own}, **asked)
    right = [templated.generate(text=prompt, beam_width=20, n=5).meta_info for prompt in prompts]
    results = [result for meta in right for result in meta.beam_results]
    assert [said(choice) for choice in answer.choices] == [result.items for result in results]
    assert answer.usage and answer.usage.prompt_tokens == sum(meta.prompt_tokens for meta in right)

    message: Any = {"role": "user", "content": prompts[0]}
    talk = {"template": "talk", "sampling_params": {"beam_width": 20}}
    chat = openai.chat.completions.create(messages=[message], extra_body={"xgr": talk}, **asked)
    right_chat = templated.generate(messages=[message], template="talk", beam_width=20, n=5)
    best = [choice.message.content for choice in chat.choices]
    assert best[0] == right_chat.text and len(best) == 5
    pieces = openai.chat.completions.create(
        messages=[message], extra_body={"xgr": talk}, stream=True, **asked
    )
    assert [choice.delta.content for piece in pieces for choice in piece.choices] == best
    with pytest.raises(openai_errors.BadRequestError, match="no_such") as refused:
        openai.completions.create(prompt="x", extra_body={"xgr": {"no_such": 1}}, **asked)
    assert refused.value.code and refused.value.param


def said(choice: Any) -> list[str]:
    """The items of a choice."""
    found: list[str] = choice.xgr["items"]
    return found


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
