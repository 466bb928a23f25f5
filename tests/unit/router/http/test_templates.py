"""Prompts by a catalog's templates and by messages: what a request becomes, and what is refused by name."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_catalogs import build_from_arrays
from made_templates import CHAT, with_templates

from router.http.schema import MOST_MESSAGES, MOST_NAMED
from xgr_runtime.catalog import PromptTemplate
from xgr_runtime.catalog.template import MessagesTemplate, Templates, TextTemplate
from xgr_runtime.prompts import Prompts
from xgr_runtime.wire.messages import Limits

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

    from xgr_runtime.catalog import Catalog

BOS, EOS, UNKNOWN = 1, 2, 0


def sids(catalog: Catalog, *items: str) -> list[list[int]]:
    found: list[list[int]] = catalog.sids[catalog.leaves_of_items(items)].tolist()
    return found


def tokens(server: Server, **body: Any) -> list[int]:
    """The prompt that a request becomes."""
    answer = server.generate(**body)
    assert answer.status_code == 200, answer.text
    found: list[int] = server.dispatch.jobs[-1].tokens.tolist()
    assert answer.json()["meta_info"]["prompt_tokens"] == len(found)
    return found


def refused(server: Server, param: str, **body: Any) -> str:
    """The message of a 400 that names `param`."""
    answer = server.generate(**body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value"), error
    return str(error["message"])


def says(content: object, role: str = "user") -> dict[str, object]:
    return {"role": role, "content": content}


# --- what a request becomes -----------------------------------------------------------------------------


def test_a_template_by_its_name(server: Server, catalog: Catalog) -> None:
    one, two = sids(catalog, "1", "2")
    assert tokens(server, history=["1", "2"]) == [BOS, *one, *two]
    assert tokens(server, history=["1", 2], template="default") == [BOS, *one, *two]
    story = {"history": ["1", "2"], "template": "story", "variables": {"profile": "<c_0>"}}
    assert tokens(server, **story) == [BOS, 19, *one, EOS, *two]
    story["variables"] = {"profile": "<c_0>", "end": "<eos><eos>"}
    assert tokens(server, **story) == [BOS, 19, *one, EOS, *two, EOS, EOS]
    assert tokens(server, history=[], template="story", variables={"profile": ""}) == [BOS]


def test_histories_by_name(server: Server, catalog: Catalog) -> None:
    one, two, three = sids(catalog, "1", "2", "3")
    both = {"bought": [3], "seen": ["1", 2]}
    assert tokens(server, history=both, template="two") == [BOS, *one, *two, EOS, *three]
    both["bought"] = []
    assert tokens(server, history=both, template="two") == [BOS, *one, *two, EOS, UNKNOWN]


def test_filters_and_unknown_items_of_all_histories(server: Server, dispatch: FakeDispatch) -> None:
    both = {"seen": ["1", "gone"], "bought": [3, "?"]}
    dropped = {"history": both, "template": "two"}
    strict = dropped | {"unknown_history": "refuse"}
    assert "history.'seen'[1] is 'gone'" in refused(server, "history", **strict)
    meta = server.generate(**dropped, filters={"exclude_history": True, "deny": [7]}).json()["meta_info"]
    assert meta["unknown_items"] == {"allow": 0, "deny": 2, "history": 2}
    denied = server.catalog.leaves_of_items(["3", "7"])
    assert set(denied.tolist()) <= set(dispatch.jobs[-1].deny.tolist())
    nothing = {"history": {"seen": ["gone"], "bought": []}, "template": "two", "unknown_history": "drop"}
    assert "send one that it holds" in refused(server, "history", **nothing)
    many = {"history": {"seen": [], "bought": [1 << 64]}, "template": "two"}
    assert "history.'bought'[0] is a number of more than 64 bits" in refused(server, "history", **many)


def test_what_does_not_fit_is_dropped_and_counted(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.pair = Limits(max_prompt_tokens=9, max_beam_width=32)
    story = {"history": ["1", "2", "3"], "template": "story", "variables": {"profile": "<a_0>"}}
    meta = server.generate(**story).json()["meta_info"]
    assert (meta["dropped_items"], meta["prompt_tokens"]) == (1, 9)


def test_messages_go_through_the_chat_template(server: Server) -> None:
    talk = [says("<a_0>", "system"), says("<a_1><b_2>")]
    assert tokens(server, messages=talk) == [BOS, 3, EOS, BOS, 4, 13, EOS, 10]
    assert tokens(server, messages=talk[:1], template="chat") == [BOS, 3, EOS, 10]
    more = {"messages": talk[:1], "chat_template_kwargs": {"more": "<c_1>"}}
    assert tokens(server, **more) == [BOS, 3, EOS, 20, 10]


PARTS = [says([{"type": "text", "text": "<a_0>"}]), says("<a_1>")]
TWO_PARTS = [says([{"type": "text", "text": "<a_0>"}, {"type": "text", "text": "<b_0>"}])]
# Ways in which templates read parts, or what was assigned from a message's content.
READERS = [
    "{% for part in m.content %}{{ part.text }}{% endfor %}",
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}",
    "{% set said = m.content %}{% for part in said %}{{ part.text }}{% endfor %}",
    "{{ m.content | map(attribute='text') | join }}",
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}",
]


def chat_of(server: Server, source: str) -> None:
    """Starts over with one template, for messages."""
    template = MessagesTemplate(chat_template=source)
    server.catalog = with_templates(server.catalog, Templates({"default": template}))
    server.set()


@pytest.mark.parametrize("reads", READERS)
def test_parts_are_given_to_templates_that_read_them(server: Server, reads: str) -> None:
    content = "{% if m.content is string %}{{ m.content }}{% else %}" + reads + "{% endif %}"
    chat_of(server, "{% for m in messages %}" + content + "<eos>{% endfor %}")
    assert tokens(server, messages=PARTS) == [3, EOS, 4, EOS]
    assert tokens(server, messages=TWO_PARTS) == [3, 11, EOS]


@pytest.mark.parametrize(
    "content",
    [
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% endif %}",
        "{% set content = m.content %}{% if content is string %}{{ content }}{% endif %}",
        "{% for piece in m.content.split('|') %}{{ piece }}{% endfor %}",
    ],
)
def test_others_are_given_the_text_of_a_single_part(server: Server, content: str) -> None:
    """They would leave it out, or spell the list."""
    chat_of(server, "{% for m in messages %}" + content + "<eos>{% endfor %}")
    assert tokens(server, messages=PARTS) == [3, EOS, 4, EOS]
    assert "has 2 parts" in refused(server, "messages", messages=TWO_PARTS)
    assert "has 0 parts" in refused(server, "messages", messages=[says([])])


def test_fields_that_are_null_are_absent(server: Server) -> None:
    chat_of(server, "{% for m in messages %}{{ m.content }}{{ '<eos>' if m.name is defined }}{% endfor %}")
    assert tokens(server, messages=[says("<a_0>") | {"name": None}]) == [3]
    assert tokens(server, messages=[says("<a_0>") | {"name": "x"}]) == [3, EOS]


def test_the_checkpoints_own_chat_template(server: Server, tmp_path: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    server.prompts = Prompts.read(server.tokenizer, tmp_path)
    server.catalog = with_templates(server.catalog, Templates.of(PromptTemplate()))
    server.set()
    assert tokens(server, messages=[says("<a_0>")]) == [BOS, 3, EOS]
    assert tokens(server, history=["1"]) == sids(server.catalog, "1")[0]


# --- what is refused ------------------------------------------------------------------------------------

STORY = {"history": ["1"], "template": "story"}
TALK = {"messages": [says("<a_0>")]}
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown template": ({"history": ["1"], "template": "no"}, "template", "default, story, two, chat"),
    "of a chat": (TALK | {"template": "no"}, "template", "chat"),
    "story of a chat": (TALK | {"template": "story"}, "template", "messages"),
    "chat of a history": ({"history": ["1"], "template": "chat"}, "template", "send messages"),
    "a template and a text": ({"text": "<a_0>", "template": "story"}, "template", "history or messages"),
    "a template and ids": ({"input_ids": [1], "template": "default"}, "template", "history or messages"),
    "a template that is a list": ({"history": ["1"], "template": ["story"]}, "template", "expected `str"),
    "a missing variable": (STORY, "variables", "profile"),
    "an unknown variable": (STORY | {"variables": {"profile": "", "no": ""}}, "variables", "no"),
    "variables of ids": ({"history": ["1"], "variables": {"a": "b"}}, "variables", "leave them out"),
    "variables of a chat": (TALK | {"variables": {"a": "b"}}, "variables", "variables needs history"),
    "variables of a text": ({"text": "<a_0>", "variables": {}}, "variables", "variables needs history"),
    "a number": (STORY | {"variables": {"profile": 7}}, "variables", "expected `str`"),
    "a list of variables": (STORY | {"variables": ["profile"]}, "variables", "expected `object"),
    "many variables": (
        STORY | {"variables": {str(i): "" for i in range(MOST_NAMED + 1)}},
        "variables",
        f"<= {MOST_NAMED}",
    ),
    "a long name": (STORY | {"variables": {"a" * 2000: ""}}, "variables", "a" * 80),
    "a long variable": (STORY | {"variables": {"profile": "<a_0>" * 40}}, "variables", "the limit is 30"),
    "a map for one list": ({"history": {"seen": ["1"]}}, "history", "as a list"),
    "a map for a story": (
        STORY | {"history": {"seen": []}, "variables": {"profile": ""}},
        "history",
        "a list",
    ),
    "a list for a map": ({"history": ["1"], "template": "two"}, "history", "seen, bought"),
    "half a map": ({"history": {"seen": ["1"]}, "template": "two"}, "history", "seen, bought"),
    "too much of a map": (
        {"history": {"seen": [], "bought": [], "a": []}, "template": "two"},
        "history",
        "seen, bought",
    ),
    "an unknown item": ({"history": {"seen": ["no"], "bought": []}, "template": "two"}, "history", "'no'"),
    "a map of texts": ({"history": {"seen": "1"}}, "history", "expected `array`"),
    "many lists": ({"history": {str(i): [] for i in range(MOST_NAMED + 1)}}, "history", f"<= {MOST_NAMED}"),
    "two prompts": (TALK | {"history": ["1"]}, "messages", "exactly one"),
    "a text and messages": (TALK | {"text": "<a_0>"}, "messages", "exactly one"),
    "no message": ({"messages": []}, "messages", ">= 1"),
    "many messages": ({"messages": [says("")] * (MOST_MESSAGES + 1)}, "messages", f"<= {MOST_MESSAGES}"),
    "one message": ({"messages": says("<a_0>")}, "messages", "expected `array"),
    "no role": ({"messages": [says("<a_0>"), {"content": "<a_0>"}]}, "messages", "messages[1].role"),
    "a null role": ({"messages": [{"role": None, "content": ""}]}, "messages", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages", "messages[0].content is missing"),
    "null": ({"messages": [says(None)]}, "messages", "messages[0].content is missing"),
    "content that is a number": ({"messages": [says(7)]}, "messages", "expected"),
    "an image": (
        {"messages": [says([{"type": "text", "text": ""}, {"type": "image", "url": "x"}])]},
        "messages",
        "content[1] must be",
    ),
    "a part without text": ({"messages": [says([{"type": "text"}])]}, "messages", "content[0] must be"),
    "a part without type": ({"messages": [says([{"text": "x"}])]}, "messages", "content[0] must be"),
    "a part that is text": ({"messages": [says(["x"])]}, "messages", "expected `object`"),
    "calls": ({"messages": [says("") | {"tool_calls": [{"function": {}}]}]}, "messages", "expected"),
    "a long chat": ({"messages": [says("<a_0>" * 40)]}, "messages", "the limit is 30"),
    "a template that raises": ({"messages": [says("", "nobody")]}, "messages", "nobody may speak"),
    "arguments of a history": (
        {"history": ["1"], "chat_template_kwargs": {"a": 1}},
        "chat_template_kwargs",
        "send that, or leave chat_template_kwargs out; those of a history stand in the catalog's template",
    ),
    "messages as an argument": (
        TALK | {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        "send messages alone",
    ),
    "arguments that are a list": (TALK | {"chat_template_kwargs": [1]}, "chat_template_kwargs", "expected"),
    "excluding no history": (
        TALK | {"filters": {"exclude_history": True}},
        "filters.exclude_history",
        "exclude_history needs history",
    ),
}


@pytest.mark.parametrize(("body", "param", "says_so"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("padding", [0, 1 << 15], ids=["short", "long"])
def test_what_is_wrong_is_named(
    server: Server, dispatch: FakeDispatch, body: dict[str, Any], param: str, says_so: str, padding: int
) -> None:
    """Whether it is decoded at once or in pieces."""
    server.set(max_body_bytes=1 << 20)
    message = refused(server, param, **body, rid="r", conversation_id="x" * padding)
    assert says_so in message
    assert not dispatch.jobs


def test_messages_without_a_chat_template(server: Server) -> None:
    server.catalog = build_from_arrays(["0"], [[3, 11, 19]], template=PromptTemplate(), vocab_size=27)
    server.set()
    assert "no chat template" in refused(server, "messages", **TALK)


def test_a_prompt_beyond_the_vocabulary(server: Server) -> None:
    """Where the tokenizer has more tokens than the model."""
    small = build_from_arrays(["0"], [[3, 4, 5]], vocab_size=26)
    server.catalog = with_templates(small, server.catalog.templates)
    server.set()
    variables = {"profile": "<c_7>"}
    message = refused(server, "history", history=["0"], template="story", variables=variables)
    assert "is 26, the vocabulary ends at 25" in message
    assert "is 26" in refused(server, "messages", messages=[says("<c_7>")])


# --- what it costs --------------------------------------------------------------------------------------

LONG: dict[str, dict[str, Any]] = {
    "variables": {"history": [], "template": "story", "variables": {"profile": "<a_0>" * 500}},
    "messages": {"messages": [says("<a_0>" * 500)]},
    "many messages": {"messages": [says("")] * 17},
    "a long body": {"messages": [says("<a_0>" * 4000)]},
    "a longer body": {"history": {"seen": ["1"] * 5000, "bought": []}, "template": "two"},
    "histories": {"history": {"seen": ["1"] * 200, "bought": ["2"] * 57}, "template": "two"},
    "a history": {"history": ["1"] * 257, "template": "story", "variables": {"profile": ""}},
}


@pytest.mark.parametrize("body", LONG.values(), ids=LONG)
def test_what_is_long_is_worked_out_off_the_loop(
    server: Server, dispatch: FakeDispatch, body: dict[str, Any]
) -> None:
    threads: list[str] = []
    prompts = server.prompts

    class Watched:
        def __getattr__(self, name: str) -> Any:
            threads.append(threading.current_thread().name)
            return getattr(prompts, name)

    server.prompts = Watched()  # type: ignore[assignment]
    server.set(max_body_bytes=1 << 20, max_prompt_tokens=None)
    dispatch.pair = Limits(max_prompt_tokens=20_000, max_beam_width=32)
    threads.clear()
    assert len(tokens(server, **body)) > 30
    (name,) = set(threads)
    assert name.startswith("intake")
    threads.clear()
    tokens(server, **STORY, variables={"profile": ""})
    tokens(server, **TALK)
    tokens(server, history=["1"] * 2000)
    assert set(threads) == {threading.main_thread().name}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**STORY, "variables": {"profile": "<a_0>" * 100_000}}, "variables"),
        ({**STORY, "variables": {"profile": "<a_0>" * 300}}, "variables"),
        ({"messages": [says("<a_0>" * 1000)] * 100}, "messages"),
        ({"messages": [says([{"type": "text", "text": "<a_0>" * 100_000}])]}, "messages"),
        ({"messages": [says("") | {"name": "<a_0>" * 100_000}]}, "messages"),
    ],
    ids=["variables", "a little more", "messages", "parts", "names"],
)
def test_what_can_be_no_prompt_is_refused_unread(
    server: Server, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], param: str
) -> None:
    server.set(max_body_bytes=8 << 20)
    for renders in ("of_history", "of_messages"):
        monkeypatch.setattr(Prompts, renders, None)  # nothing may ask it
    assert "far too many tokens, the limit is 30" in refused(server, param, **body)


# --- anything -------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["seen", "bought", "profile", "end", "history", ""])
TEXTS = st.sampled_from(["", "<a_0>", "{history}", "{{", "{% for", "\ud7ff", "\x00", "word"]) | st.text(
    max_size=5
)
SOME_ITEMS = st.lists(st.integers(0, 45) | st.text(max_size=2), max_size=12)
PART = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image"]), "text": TEXTS})
MESSAGE = st.fixed_dictionaries(
    {"role": TEXTS}, optional={"content": TEXTS | st.lists(PART, max_size=2) | st.none(), "name": TEXTS}
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "history": SOME_ITEMS | st.dictionaries(NAMES, SOME_ITEMS, max_size=3),
        "template": st.sampled_from(["default", "story", "two", "chat", "", "no", None]),
        "variables": st.dictionaries(NAMES, TEXTS, max_size=3),
        "messages": st.lists(MESSAGE, max_size=3),
        "chat_template_kwargs": st.dictionaries(TEXTS, st.integers() | TEXTS | st.lists(TEXTS), max_size=3),
        "unknown_history": st.sampled_from(["drop", "refuse"]),
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=NEARLY)
def test_never_a_server_error(server: Server, body: dict[str, Any]) -> None:
    response = server.send("POST", "/generate", json=body)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"], response.text


def test_the_example_of_a_template_that_needs_more(server: Server) -> None:
    template = TextTemplate("{profile}{history}")
    server.catalog = with_templates(server.catalog, Templates({"default": template}))
    server.set()
    document = server.get("/openapi.json").json()
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert server.generate(**body).status_code == 200
    assert server.get("/health_generate").status_code == 200
