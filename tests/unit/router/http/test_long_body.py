"""Long bodies are decoded in pieces, to what a decoder makes of them at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import long_body
from router.http.schema import MOST_FILTERED, MOST_HISTORY, MOST_MESSAGES, MOST_NAMED, GenerateRequest
from router.http.server.problems import decode
from xgr_runtime.errors import BadRequest

ENOUGH = 1 << 30  # tokens
_WHOLE = msgspec.json.Decoder(GenerateRequest)


def in_pieces(body: bytes, most_tokens: int = ENOUGH) -> GenerateRequest:
    long_body.outline(body)
    return long_body.decode_long(body, most_tokens)


def outcome(decoded: Any, body: bytes) -> Any:
    """The request, or which field is wrong."""
    try:
        return decoded(body)
    except BadRequest as error:
        return error.param, error.message.partition(":")[0]


texts = st.text(st.sampled_from(list('a,"\\[]{}:\n é\U0001f600')), max_size=5)
ids = texts | st.integers(-(10**18), 10**18)
wrong = st.sampled_from([None, True, 1.5, [1, 2], [[]], {"a": 1, "b": 2}, 1 << 70])  # type: ignore[var-annotated]
# One list a body, so that only one thing can be wrong with it.
lists = st.lists(ids, max_size=9) | st.lists(ids | wrong, max_size=9) | wrong | texts
filters = st.fixed_dictionaries({"allow": lists}) | st.fixed_dictionaries({"deny": lists}) | wrong
tokens = st.lists(st.integers(-1, 99) | wrong, max_size=9) | wrong
maps = st.dictionaries(texts, st.lists(ids, max_size=9), max_size=3) | st.dictionaries(
    texts, lists, max_size=1
)
variables = (
    st.dictionaries(texts, texts, max_size=3) | st.dictionaries(texts, texts | wrong, max_size=1) | wrong
)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
contents = texts | parts | st.lists(wrong, max_size=1) | wrong
turns = st.fixed_dictionaries({"role": texts}, optional={"content": texts | parts, "name": texts})
chats = (
    st.lists(turns, max_size=4)
    | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": contents}), max_size=1)
    | wrong
)
bodies = st.one_of(
    st.fixed_dictionaries({"history": maps}, optional={"template": texts}),
    st.fixed_dictionaries({"variables": variables, "history": st.just({"a": [1]})}),
    st.fixed_dictionaries({"messages": chats}, optional={"rid": st.just("r")}),
    st.fixed_dictionaries({"history": lists}, optional={"rid": st.just("r"), "text": texts}),
    st.fixed_dictionaries({"input_ids": tokens}),
    st.fixed_dictionaries({"filters": filters, "history": st.just([1])}),
)


@given(bodies, st.booleans(), st.sampled_from([(",", ":"), (" ,  ", " :\n")]))
def test_pieces_make_the_whole(body: dict[str, Any], ascii_only: bool, separators: tuple[str, str]) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only, separators=separators).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_body, "PIECE", 2)
        assert outcome(in_pieces, raw) == outcome(lambda body: decode(_WHOLE, body), raw)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"history": ["a", "\xff"]}', "not valid JSON"),
        (b'{"history": ["a", ]}', "not valid JSON"),
        (b'{"history": ["a"', "not valid JSON"),
        (b'{"historie": ["a"]}', "historie is not a field"),
        (b'{"filters": {"denie": ["a"]}}', "filters.denie is not a field"),
        (b'{"history": ["a", ["b", "c"]]}', "history[1]: expected"),
        (b'{"custom_labels": {"a": 1}}', "custom_labels"),
        (b'{"history": {"a": [1], "b": [1, {}]}}', "history[...][1]: expected"),
        (b'{"history": {"a": [1], "b": null}}', "history[...]: expected"),
        (b'{"history": {"a": [1, [2, 3]]}}', "history[...][1]: expected"),
        (b'{"history": {"a": [1]', "not valid JSON"),
        (b'{"history": 7}', "history: expected"),
        (b'{"variables": {"a": 1}}', "variables[...]: expected `str`"),
        (b'{"variables": ["a"]}', "variables: expected `object | null`"),
        (b'{"messages": [{"role": 7}]}', "messages[0][...]: expected"),
        (b'{"messages": [{"role": {}}]}', "messages[0][...]: expected"),
        (b'{"messages": [{"content": [{"text": []}]}]}', "messages[0][...][0][...]: expected `str`"),
        (b'{"messages": []}', "messages: expected `array` of length >= 1"),
        (b'{"messages": %s}' % (b"[" * 5000), "nested too deeply"),
        (b'{"messages": %s1%s}' % (b"[" * 5000, b"]" * 5000), "nested too deeply"),
        (b'{"messages": %s1%s}' % (b"[" * 500, b"]" * 500), "messages[0]: expected `object`"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, body: bytes, says: str) -> None:
    monkeypatch.setattr(long_body, "PIECE", 1)
    with pytest.raises(BadRequest) as error:
        in_pieces(body)
    assert says in error.value.message


@pytest.mark.parametrize("rest", ["custom_labels", "stop_token_ids", "image_data", "unknown", "lora_path"])
def test_only_what_may_be_long_is_long(rest: str) -> None:
    body = json.dumps({"history": ["a"], rest: ["x" * 99] * 1000}).encode()
    with pytest.raises(BadRequest, match="besides input_ids, history, text, messages, variables and filters"):
        in_pieces(body)


@pytest.mark.parametrize(
    ("name", "most"),
    [("history", MOST_HISTORY), ("allow", MOST_FILTERED), ("deny", MOST_FILTERED), ("input_ids", 1000)],
)
@pytest.mark.parametrize("entry", ["1", '",\\""'])
def test_lists_are_counted_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, name: str, most: int, entry: str
) -> None:
    monkeypatch.setattr(long_body._LongList, "_piece", None)  # nothing may call it
    raw = "[" + ",".join([entry] * (most + 1)) + "]"
    whole = (
        f'{{"{name}": {raw}}}' if name in ("history", "input_ids") else f'{{"filters": {{"{name}": {raw}}}}}'
    )
    with pytest.raises(BadRequest, match=str(most)) as error:
        in_pieces(whole.encode(), 1000)
    assert (error.value.param or "").endswith(name)


def repeated(kind: str, entry: str, count: int) -> str:
    """A list, or a map whose names are numbers, of one entry `count` times."""
    if kind == "[]":
        return f"[{','.join([entry] * count)}]"
    return "{" + ",".join(f'"{name}":{entry}' for name in range(count)) + "}"


class Refusing:
    """A decoder that is given nothing but null."""

    def __init__(self, field: str) -> None:
        self.field = field

    def decode(self, raw: msgspec.Raw) -> None:
        assert bytes(raw) == b"null", f"{self.field} is decoded uncounted"


HALF = long_body.MOST_PARTS // 2 + 1
MANY = {
    "texts": ("messages", repeated("[]", '{"role": "a,[{"}', HALF)),
    "parts": ("messages", '[{"content": ' + repeated("[]", "{}", HALF) + "}]"),
    "variables": ("variables", repeated("{}", '":"', MOST_NAMED + 1)),
    "lists": ("history", repeated("{}", "[]", MOST_NAMED + 1)),
    "items": ("history", repeated("{}", repeated("[]", "1", MOST_HISTORY + 1), 2)),
    "items of all": ("history", repeated("{}", repeated("[]", "1", MOST_HISTORY // 2 + 1), 3)),
}


@pytest.mark.parametrize(("field", "value"), MANY.values(), ids=MANY)
def test_maps_are_counted_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    decoder = {"history": "_LISTS", "messages": "_MESSAGES", "variables": "_VARIABLES"}[field]
    monkeypatch.setattr(long_body, decoder, Refusing(field))
    with pytest.raises(BadRequest) as error:
        in_pieces(f'{{"{field}": {value}}}'.encode())
    assert error.value.param == field


def test_maps_as_large_as_they_may_be() -> None:
    half = [1] * (MOST_HISTORY // 2)
    given = {"history": {"a": half, "b": half}, "variables": {f"{i}:,": '{[:,"' for i in range(MOST_NAMED)}}
    found = in_pieces(json.dumps(given).encode())
    assert (found.history, found.variables) == (given["history"], given["variables"])
    talk = {"messages": [{"role": "user", "content": '{[:,"' * 99}] * MOST_MESSAGES}
    assert in_pieces(json.dumps(talk).encode()).messages == talk["messages"]
