"""Long bodies are decoded in pieces, to what a decoder makes of them at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import long_body
from router.http.schema import MOST_FILTERED, MOST_HISTORY, GenerateRequest
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
bodies = st.one_of(
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
    with pytest.raises(BadRequest, match="besides input_ids, history, text and filters"):
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
