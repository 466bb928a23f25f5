"""Templates as catalog.json declares them: what they render, and which are refused with what to change."""
# ruff: noqa: E501  a template and what is said of it are on one line

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_tokenizers import SIDS, byte_pairs

from xgr_runtime.catalog import Catalog, CatalogView, PromptTemplate, build_catalog
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.template import Templates
from xgr_runtime.catalog.watch import SourceWatch
from xgr_runtime.errors import BadRequest, CatalogError, ModelError
from xgr_runtime.prompts import Prompts
from xgr_runtime.prompts.views import View
from xgr_runtime.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|end|>{% endif %}"
ITEMS = {
    str(n): {
        "sid": [SIDS[n], SIDS[12 + n % 5]],
        "title": f"Title {n}",
        "attributes": {"brand": f"b{n}", "tags": ["x", n], "price": n / 2},
    }
    for n in range(12)
}
TEXT = {"text": "the user: {history}"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    byte_pairs(folder, normalized=False)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture
def make(checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[Catalog, Prompts]]:
    def made(templates: Mapping[str, Any], model: Path = checkpoint, **more: Any) -> tuple[Catalog, Prompts]:
        (tmp_path / "index.json").write_text(json.dumps(ITEMS))
        (tmp_path / "catalog.json").write_text(json.dumps({"templates": templates, **more}))
        (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
        catalog = build_catalog(tmp_path / "index.json", model)
        prompts = Prompts.read(read_tokenizer(model), model)
        prompts.check(catalog)
        return catalog, prompts

    return made


def test_templates_are_tried_again_where_sids_get_a_token(
    make: Callable[..., tuple[Catalog, Prompts]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edits of SIDs whose tokens others have need no trial; prompts show the version's own items."""
    catalog, prompts = make({"t": {**TEXT, "item": "{title} {sid}"}})
    tried: list[str] = []
    check = View.check
    monkeypatch.setattr(
        View, "check", lambda view, limit: (tried.append(view.catalog.version), check(view, limit))
    )
    first = CatalogView(catalog)
    a, b = catalog.sids[0].tolist(), catalog.sids[-1].tolist()
    known = edited(first, EditBatch(put=(ItemRecord("new", (a[0], b[1]), "Own"),), remove=("3",)))
    assert known.leaves == first.leaves + 1
    prompts.check(known.catalog)
    shown = text_of((known.catalog, prompts), ["new", "3"])
    assert shown == f"the user: Own {SIDS[0]}{SIDS[13]}Title 3 {sid(3)}"
    assert text_of((catalog, prompts), ["1"]) == f"the user: Title 1 {sid(1)}" and not tried
    unknown = edited(known, EditBatch(put=(ItemRecord("more", (a[0], a[0]), "More"),)))
    prompts.check(unknown.catalog)
    assert tried == [] and unknown.catalog.basis == catalog.version, "the token stands at another level"
    size = catalog.vocab_size
    stranger = edited(unknown, EditBatch(put=(ItemRecord("other", (a[0], 5), "Other"),)))
    prompts.check(stranger.catalog)
    assert tried == [stranger.version] and size == stranger.catalog.vocab_size


def text_of(
    made: tuple[Catalog, Prompts], history: Any, name: str | None = None, most: int = 4096, **variables: str
) -> str:
    catalog, prompts = made
    lists = history if isinstance(history, dict) else {"": history}
    leaves = {key: catalog.leaves_of_items([str(n) for n in items]) for key, items in lists.items()}
    found = prompts.of_history(catalog, name, leaves, variables, most)
    assert found.text is not None
    return found.text


def sid(*items: int) -> str:
    return "".join(token for n in items for token in ITEMS[str(n)]["sid"])


@pytest.mark.parametrize(
    ("template", "history", "text"),
    [
        (TEXT, [1], f"the user: {sid(1)}"),
        ({**TEXT, "separator": ", "}, [1, 3], f"the user: {sid(1)}, {sid(3)}"),
        ({**TEXT, "empty_history": "nothing"}, [], "the user: nothing"),
        (TEXT, [], "the user: "),
        ({"text": "{{a}} {history} }}", "item": "{{{sid}}}"}, [2], f"{{a}} {{{sid(2)}}} }}"),
        (
            {**TEXT, "item": "{number}. {sid} {title} by {brand} {tags} {price}", "separator": "\n"},
            [4, 2],
            f"the user: 1. {sid(4)} Title 4 by b4 x, 4 2.0\n2. {sid(2)} Title 2 by b2 x, 2 1.0",
        ),
        ({**TEXT, "item": "{title}", "separator": ";"}, [5, 6], "the user: Title 5;Title 6"),
        ({**TEXT, "item": "{sid}{sid}"}, [5], f"the user: {sid(5, 5)}"),
        ({**TEXT, "max_history_items": 2}, [1, 2, 3], f"the user: {sid(2, 3)}"),
        ({"text": "{history} and {history}"}, [1, 2], f"{sid(1, 2)} and {sid(1, 2)}"),
        ({"messages": [{"role": "user", "content": "a {history}"}]}, [1], f"<|user|>a {sid(1)}\n<|end|>"),
        (
            {
                "messages": [{"role": "system", "content": "{{}}"}, {"role": "user", "content": "{history}"}],
                "chat_template": "own.jinja",
                "generation_prefix": "<|end|>",
            },
            [7],
            f"[{{}}][{sid(7)}]<|end|>",
        ),
        (
            {
                "messages": [{"role": "user", "content": "{history}"}],
                "chat_template_kwargs": {"add_generation_prompt": False},
            },
            [7],
            f"<|user|>{sid(7)}\n",
        ),
    ],
)
def test_what_is_rendered(template: dict[str, Any], history: list[int], text: str, make: Any) -> None:
    made = make({"one": template})
    assert text_of(made, history) == text
    found = made[1].of_history(made[0], "one", {"": made[0].leaves_of_items([*map(str, history)])}, {}, 4096)
    tokenizer = made[1]._tokenizer
    assert tokenizer is not None and found.tokens.tolist() == tokenizer.encode(text).ids
    assert found.tokens.dtype == np.int32 and found.dropped == (1 if "max_history_items" in template else 0)


def test_variables_and_histories_by_name(make: Any) -> None:
    made = make(
        {
            "two": {
                "text": "{profile}: {history.bought} | {history.seen} ({mood})",
                "empty_history": "-",
                "defaults": {"mood": "calm"},
                "max_history_items": 2,
            },
            "one": TEXT,
        },
        default_template="two",
    )
    lists = {"bought": [1, 2, 3], "seen": []}
    assert text_of(made, lists, profile="{x}") == f"{{x}}: {sid(2, 3)} | - (calm)"
    assert text_of(made, lists, "two", profile="", mood="<a_1>") == f": {sid(2, 3)} | - (<a_1>)"
    assert text_of(made, [1], "one") == f"the user: {sid(1)}"


@pytest.mark.parametrize(
    ("name", "history", "variables", "param", "said"),
    [
        ("three", {"": []}, {}, "template", "this catalog has all, chat, one, ids: name one of these"),
        (None, {"": []}, {}, "template", "no template is named, and this catalog has all, chat, one, ids"),
        ("one", {"": [], "b": []}, {}, "history", "shows history: send history as a list"),
        ("one", {"a": []}, {}, "history", "send history as a list"),
        ("all", {"": []}, {"p": ""}, "history", "as an object with lists of a, b"),
        ("all", {"a": []}, {"p": ""}, "history", "as an object with lists of a, b"),
        ("all", {"a": [], "b": []}, {}, "variables", "needs variables.p: send it, or give it a default"),
        ("all", {"a": [], "b": []}, {"p": "", "q": ""}, "variables", "variables.q is not in the template"),
        ("ids", {"": [0]}, {"q": ""}, "variables", "takes no variables"),
        ("ids", {"a": [0]}, {}, "history", "send history as a list"),
        ("chat", {"": []}, {}, "template", "is for messages that a request carries: send messages"),
        ("one", {"": [0]}, {}, "history", "without any item, the limit is 4: shorten"),
    ],
)
def test_requests_that_fit_no_template(
    name: str | None, history: Any, variables: dict[str, str], param: str, said: str, make: Any
) -> None:
    named = {"one": TEXT, "all": {"text": "{p}{history.a}{history.b}"}, "chat": {}}
    catalog, prompts = make(named)
    templates = Templates({**catalog.templates.named, "ids": PromptTemplate((1,), (), (2,))})
    catalog = Catalog("another", catalog.vocab_size, templates, catalog.arrays)
    leaves = {key: np.array(items, np.int64) for key, items in history.items()}
    with pytest.raises(BadRequest) as raised:
        prompts.of_history(catalog, name, leaves, variables, 4)
    assert raised.value.param == param and said in str(raised.value)


@pytest.mark.parametrize("most", [4096, 120, 42, 41, 40, 30, 20, 15, 9, 2])
def test_the_newest_items_that_fit(most: int, make: Any) -> None:
    catalog, prompts = make({"one": {**TEXT, "item": "{sid}{title}"}})
    leaves = np.arange(12) % catalog.leaves
    by_hand = [prompts.of_history(catalog, None, {"": leaves[12 - n :]}, {}, 4096) for n in range(13)]
    fitting = [n for n in range(13) if len(by_hand[n].tokens) <= most]
    if not fitting:
        with pytest.raises(BadRequest, match="without any item"):
            prompts.of_history(catalog, None, {"": leaves}, {}, most)
        return
    found = prompts.of_history(catalog, None, {"": leaves}, {}, most)
    assert found.tokens.tolist() == by_hand[fitting[-1]].tokens.tolist()
    assert found.dropped == 12 - fitting[-1]


def test_a_variable_may_be_called_nearly_as_the_history_is(make: Any) -> None:
    """It begins so, or has a default."""
    catalog, prompts = make({"t": {"text": "{history_of}|{hstory}|{story}", "defaults": {"hstory": "b"}}})
    found = prompts.of_history(catalog, None, {}, {"history_of": "a", "story": "c"}, 4096)
    tokenizer = prompts._tokenizer
    assert tokenizer is not None and found.tokens.tolist() == tokenizer.encode("a|b|c").ids


HEAD = {"head": ["<|end|>", "<|end|>"], "tail": ["<|end|>"]}
BAD: dict[str, tuple[Any, str]] = {
    "no-object": ({"t": []}, r"templates.t is \[\]: it must be an object"),
    "unknown-field": ({"t": {**TEXT, "sepator": ""}}, r"templates.t has the unknown fields \['sepator'\]"),
    "messages-and-text": (
        {"t": {**TEXT, "messages": []}},
        r"unknown fields \['messages'\]: one with text has",
    ),
    "text-no-text": ({"t": {"text": 5}}, "Expected `str`, got `int`"),
    "no-history": ({"t": {"text": "the user"}}, "names no {history}: write it"),
    "open-brace": ({"t": {"text": "{history"}}, "text: .* has a brace that begins or ends no name"),
    "closed-brace": ({"t": {"text": "{history} }"}}, "write {{ and }} for braces"),
    "empty-name": ({"t": {"text": "{history} {}"}}, "write {{ and }} for braces"),
    "item-brace": ({"t": {**TEXT, "item": "{sid"}}, "item: .* has a brace"),
    "item-attribute": ({"t": {**TEXT, "item": "{sid} {colour}"}}, "{colour} is neither sid, title or number"),
    "item-without": ({"t": {**TEXT, "item": "x"}}, "names nothing of an item: write {sid}"),
    "default-unused": ({"t": {**TEXT, "defaults": {"x": ""}}}, "defaults.x: no text names {x}: remove it"),
    "misspelt": ({"t": {"text": "{history} {histroy}"}}, "{histroy} reads like {history}: correct it, or"),
    "misspelt-alone": ({"t": {"text": "{name} has {Hystory}"}}, "{Hystory} reads like {history}"),
    "misspelt-name": ({"t": {"text": "{history.a} {hstory.b}"}}, '"hstory.b": ...} under defaults'),
    "limit-zero": ({"t": {**TEXT, "max_history_items": 0}}, "templates.t.max_history_items is 0"),
    "limit-text": ({"t": {**TEXT, "max_history_items": "5"}}, "max_history_items is '5'"),
    "step": ({"t": {**TEXT, "window_step": -1}}, "templates.t.window_step is -1"),
    "zero-byte": ({"t": {"text": "\0{history}"}}, "templates.t.text holds a zero byte"),
    "half-a-letter": (
        {"t": {**TEXT, "separator": "\ud800"}},
        "templates.t.separator holds a zero byte or half",
    ),
    "large": ({"t": {"text": "a" * 300_000 + "{history}"}}, "the limit is 262144: shorten it"),
    "long-for-the-model": ({"t": {"text": "a , " * 5000 + "{history}"}}, "and the model has 4096 positions"),
    "no-chat-file": (
        {"t": {"chat_template": "none.jinja"}},
        "none.jinja cannot be read .* name a file beside",
    ),
    "chat-file-no-text": ({"t": {"chat_template": 5}}, "templates.t.chat_template is 5: name a file beside"),
    "broken-chat-file": (
        {"t": {"chat_template": "broken.jinja"}},
        "the chat template does not compile .*: correct it",
    ),
    "role": (
        {"t": {"messages": [{"role": "user", "content": "{history}"}], "chat_template": "strict.jinja"}},
        "system first",
    ),
    "hidden": (
        {"t": {"messages": [{"role": "user", "content": "{history}"}], "chat_template": "hiding.jinja"}},
        "does not show the SIDs",
    ),
    "messages-kwargs": (
        {"t": {"chat_template_kwargs": {"messages": []}}},
        "messages are no keyword argument",
    ),
    "prefix": ({"t": {"generation_prefix": "<|sid_begin|>"}}, r"no token '<\|sid_begin\|>': correct it"),
    "hidden-own": ({"t": {"chat_template": "hiding.jinja"}}, "does not show what messages hold"),
    "endless-own": ({"t": {"chat_template": "endless.jinja"}}, "chat_template: .* takes too long"),
    "head-twice": ({"t": {"text": "{history}<|end|>"}, "__scoring__": HEAD}, "already end in"),
    "head-twice-default": (
        {"t": {"text": "{history}{end}", "defaults": {"end": "<|end|>"}}, "__scoring__": HEAD},
        "prompts already end in the token",
    ),
    "head-twice-chat": (
        {"t": {"messages": [{"role": "user", "content": "{history}"}]}, "__scoring__": HEAD},
        "prompts already end in the token",
    ),
    "head-twice-own": ({"t": {}, "__scoring__": HEAD}, "prompts already end in the token"),
    "message-field": ({"t": {"messages": [{"role": "user", "text": ""}]}}, "unknown field `text`"),
    "default-name": ({"a": TEXT, "__default__": "b"}, "default_template is 'b': name one of a"),
    "two-defaults": ({"default": TEXT, "__prefix__": [1]}, "prefix and templates.default both say"),
    "many": ({str(n): TEXT for n in range(65)}, "there are 65 templates, at most 64"),
}


@pytest.mark.parametrize(("templates", "said"), BAD.values(), ids=BAD.keys())
def test_bad_templates_are_refused(templates: dict[str, Any], said: str, make: Any, tmp_path: Path) -> None:
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('system first, please') }}")
    (tmp_path / "broken.jinja").write_text("{% if %}")
    (tmp_path / "hiding.jinja").write_text("{{ messages[0].content|length }}")
    (tmp_path / "endless.jinja").write_text(
        "{% for a in range(20000) %}{% for b in range(20000) %}{% endfor %}{% endfor %}"
    )
    more = {}
    if "__scoring__" in templates:
        more = {"scoring": templates.pop("__scoring__")}
    if "__default__" in templates:
        more = {"default_template": templates.pop("__default__")}
    if "__prefix__" in templates:
        more = {"prefix": templates.pop("__prefix__")}
    with pytest.raises(CatalogError, match=said) as raised:
        make(templates, **more)
    assert len(str(raised.value)) < 600 and "\n" not in str(raised.value)


TURN = {"role": "user", "content": "{history}"}
MARKS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"text": "<|im_start|>user {history}"}, "<|im_start|>"),
    "of-gemma": ({"text": "{history}<end_of_turn>"}, "<end_of_turn>"),
    "sid": ({"text": "like <s_a_1>: {history}"}, "<s_a_1>"),
    "item": ({**TEXT, "item": "<|sid_begin|>{sid}"}, "<|sid_begin|>"),
    "separator": ({**TEXT, "separator": "<|sep|>"}, "<|sep|>"),
    "empty": ({**TEXT, "empty_history": "<c_0>"}, "<c_0>"),
    "message": ({"messages": [{"role": "user", "content": "<|a|>{history}"}]}, "<|a|>"),
    "another-family": ({"messages": [TURN], "chat_template": "llama.jinja"}, "<|start_header_id|>"),
    "another-family-own": ({"chat_template": "llama.jinja"}, "<|start_header_id|>"),
}


@pytest.mark.parametrize(("template", "mark"), MARKS.values(), ids=MARKS.keys())
def test_marks_of_another_tokenizer_are_said(
    template: dict[str, Any], mark: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = "{% for m in messages %}<|start_header_id|>{{ m.role }}: {{ m.content }}{% endfor %}"
    (tmp_path / "llama.jinja").write_text(source)
    make({"t": template})
    assert f"holds {mark!r}, which is no token of this tokenizer" in caplog.text


def test_a_checkpoint_without_what_templates_need(make: Any, tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    byte_pairs(folder, normalized=False)
    with pytest.raises(CatalogError, match=r"templates\.t: the checkpoint has no chat template: name a file"):
        make({"t": {"messages": [{"role": "user", "content": "{history}"}]}}, folder)
    catalog, _ = make({"t": TEXT})
    with pytest.raises(CatalogError, match=r"templates\.t: the checkpoint has no tokenizer"):
        Prompts.read(None, None).check(catalog)


FILES: dict[str, tuple[dict[str, Any], str | None]] = {
    "settings": ({"tokenizer_config.json": {"chat_template": "settings"}}, "settings"),
    "list": (
        {
            "tokenizer_config.json": {
                "chat_template": [
                    {"name": "default", "template": "first"},
                    {"name": "tool_use", "template": "tools"},
                ]
            }
        },
        "first",
    ),
    "file-first": (
        {"tokenizer_config.json": {"chat_template": "settings"}, "chat_template.jinja": "alone"},
        "alone",
    ),
    "file-and-more": (
        {"chat_template.jinja": "alone", "additional_chat_templates/rag.jinja": "more"},
        "alone",
    ),
    "processor": ({"chat_template.json": {"chat_template": "processor"}}, "processor"),
    "settings-before-processor": (
        {
            "chat_template.json": {"chat_template": "processor"},
            "tokenizer_config.json": {"chat_template": "settings"},
        },
        "settings",
    ),
    "no-default": (
        {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "x"}]}},
        None,
    ),
    "none": ({}, None),
}


@pytest.mark.parametrize(("files", "text"), FILES.values(), ids=FILES.keys())
def test_where_chat_templates_are(files: dict[str, Any], text: str | None, tmp_path: Path) -> None:
    tokenizer = byte_pairs(tmp_path, normalized=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    for name, content in {"tokenizer_config.json": {}, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        known = settings if name == "tokenizer_config.json" else {}
        path.write_text(content if isinstance(content, str) else json.dumps({**known, **content}))
    prompts = Prompts.read(tokenizer, tmp_path)
    assert prompts.chat.source() == text
    if "chat_template.json" not in files:  # their processors read it, their tokenizers do not
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(tmp_path)
        if text is None:
            with pytest.raises(ValueError):
                theirs.get_chat_template()
        else:
            assert theirs.get_chat_template() == text


@pytest.mark.parametrize("value", [5, [1], [{"name": 1, "template": "x"}], {"default": 5}])
def test_chat_templates_of_no_form(value: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ModelError, match="chat_template must be text, or a list"):
        Prompts.read(None, tmp_path)


def messages_of(*contents: Any) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


def test_messages_of_requests(make: Any) -> None:
    catalog, prompts = make(
        {
            "one": TEXT,
            "chat": {"generation_prefix": "<a_1>", "chat_template_kwargs": {"add_generation_prompt": False}},
            "own": {"messages": [{"role": "user", "content": "{history}"}], "chat_template": "own.jinja"},
        }
    )
    found = prompts.of_messages(catalog, None, messages_of("a", "{history}"), {}, 99)
    assert found.text == "<|user|>a\n<|user|>{history}\n<a_1>" and found.dropped == 0
    kwargs = {"add_generation_prompt": True}
    assert (
        prompts.of_messages(catalog, "chat", messages_of("a"), kwargs, 99).text == "<|user|>a\n<|end|><a_1>"
    )
    assert prompts.of_messages(catalog, "own", messages_of("a", "b"), {}, 99).text == "[a][b]"
    spoken = [{"role": "user", "content": "a", "name": None}]
    assert prompts.of_messages(catalog, "own", spoken, {}, 99).text == "[a]"
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    wrong: list[tuple[str, Any, dict[str, Any], int, str]] = [
        ("one", messages_of("a"), {}, 99, "is not one of messages"),
        ("chat", messages_of("a " * 200), {}, 50, "the limit is 50"),
        ("chat", messages_of("a" * 40_000), {}, 50, "far too many tokens, the limit is 50"),
        ("chat", messages_of("a"), {"messages": []}, 99, "names messages"),
        ("chat", messages_of("a"), {"tools": deep}, 99, "100 deep"),
        ("nobody", messages_of("a"), {}, 99, "this catalog has chat, one, own"),
        ("chat", [{"role": "user"}, 5], {}, 99, r"messages\[1\] is 5: it must be an object"),
    ]
    for name, messages, kwargs, most, said in wrong:
        with pytest.raises(BadRequest, match=said):
            prompts.of_messages(catalog, name, messages, kwargs, most)


def test_a_template_that_fails_for_one_request(make: Any, tmp_path: Path) -> None:
    (tmp_path / "late.jinja").write_text(
        "{% if messages[0].content|length > 200 %}{{ raise_exception('too much') }}{% endif %}{{ messages[0].content }}"
    )
    turn = {"role": "user", "content": "{history}{more}"}
    catalog, prompts = make(
        {"t": {"messages": [turn], "chat_template": "late.jinja", "defaults": {"more": ""}}}
    )
    history = {"": np.zeros(0, np.int64)}
    with pytest.raises(BadRequest, match="the template 't': the chat template fails: too much"):
        prompts.of_history(catalog, None, history, {"more": "a" * 250}, 99)


def test_templates_are_kept_in_the_built_file(make: Any, tmp_path: Path) -> None:
    catalog, prompts = make(
        {"a": {**TEXT, "item": "{title}"}, "b": {"chat_template": "own.jinja"}}, default_template="a"
    )
    catalog.save(tmp_path / "c.xgr")
    opened = Catalog.open(tmp_path / "c.xgr")
    assert (opened.templates, opened.version) == (catalog.templates, catalog.version)
    assert text_of((opened, prompts), [3]) == "the user: Title 3"
    (tmp_path / "own.jinja").write_text("x")
    other, _ = make({"a": TEXT, "b": {"chat_template": "own.jinja"}}, default_template="a")
    assert other.version != catalog.version


def test_items_that_share_a_sid_keep_their_titles(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ITEMS, "twin", {**ITEMS["3"], "title": "Twin"})
    template = {**TEXT, "item": "{title}", "separator": ";", "max_history_items": 2}
    catalog, prompts = make({"one": template})
    rows = catalog.item_rows(["1", "twin", "3"])
    leaves = catalog.leaf_of_row[rows]
    assert leaves[1] == leaves[2]
    found = prompts.of_history(catalog, None, {"": leaves}, {}, 99, rows={"": rows})
    assert (found.text, found.dropped) == ("the user: Twin;Title 3", 1)
    assert prompts.of_history(catalog, None, {"": leaves}, {}, 99).text == "the user: Title 3;Title 3"


def test_chat_templates_are_watched_too(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make({"chat": {"chat_template": "own.jinja"}})
    watch = SourceWatch(tmp_path / "index.json")
    watch.look("v")
    assert not caplog.messages
    (tmp_path / "own.jinja").write_text("another one")
    watch.look("v")
    assert "changed on disk" in caplog.text
