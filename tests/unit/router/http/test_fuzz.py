"""Whatever JSON arrives, the answer is a result or names the fault: never a 5xx."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.http.schema import Filters, GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from conftest import Server

# The server is stateless but for counters, so one serves all examples.
RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
ITEMS = st.lists(st.integers(-2, 45) | st.integers(0, 39).map(str) | st.text(max_size=3), max_size=12)
IDS = st.lists(st.integers(-1, 30), max_size=12)
SAMPLING = st.dictionaries(
    st.sampled_from(SamplingParams.__struct_fields__), SCALARS | st.integers(-1, 25), max_size=4
)
FILTERS = st.dictionaries(st.sampled_from(Filters.__struct_fields__), ITEMS | st.booleans(), max_size=3)
NEARLY_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "input_ids": IDS,
        "history": ITEMS,
        "text": st.text(max_size=5) | st.sampled_from(["<a_0>", "<a_1><b_2>"]),
        "sampling_params": SAMPLING | st.none(),
        "filters": FILTERS | st.none(),
        "rid": st.text(max_size=4),
        "stream": st.booleans(),
    },
)
FIELDS = st.dictionaries(st.sampled_from(GenerateRequest.__struct_fields__), ANYTHING, max_size=4)


@pytest.mark.parametrize(
    "bodies", [ANYTHING, FIELDS, NEARLY_RIGHT], ids=["any-json", "any-value-per-field", "nearly-right"]
)
def test_never_a_server_error(server: Server, bodies: st.SearchStrategy[object]) -> None:
    @RELAXED
    @given(bodies)
    def check(body: object) -> None:
        response = server.send("POST", "/generate", json=body)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            assert response.json()["error"]["message"]

    check()


@RELAXED
@given(body=st.binary(max_size=64))
def test_never_a_server_error_for_bytes(server: Server, body: bytes) -> None:
    response = server.send("POST", "/generate", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


ROOM = 1 << 20  # bytes, for the deepest
DEEP = st.builds(
    lambda opening, closing, depth: opening * depth + b"1" + closing * depth,
    *(st.sampled_from([b"[", b'{"a":', b'{"input_ids":[', b""]), st.sampled_from([b"]", b"}", b"]}", b""])),
    st.sampled_from([1, 50, 500, 1000, 5000]),
)
TOKENS = st.sampled_from(
    [
        *(b'{"input_ids": [1', b"]", b"}", b"{", b"[", b",", b":", b'"', b"\\", b"null", b"true"),
        *(b"NaN", b"-Infinity", b"1e999", b"-0", b"0x1", b"01", b"1.", b"18446744073709551616", b"9" * 400),
        *(
            b'"\\ud800"',
            b'"\\udc00\\ud800"',
            b'"\\u0000"',
            b'"\xff"',
            b"\xed\xa0\x80",
            b"\xef\xbb\xbf",
            b"\0",
        ),
        *(b'"input_ids": [2]', b'"rid": "a"', b'"text": "<a_0>"', b'"sampling_params": {', b'"n": 1', b" "),
    ]
)
RAW = st.lists(TOKENS, max_size=12).map(b"".join)
MEDIA = st.sampled_from(
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/x+json",
        "",
        "text/plain",
        "a/b;c=d;;",
    ]
) | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30)


@RELAXED
@given(
    body=st.one_of(DEEP, RAW, st.binary(max_size=64)), path=st.sampled_from(["/generate", "/abort_request"])
)
def test_broken_json_is_refused_by_name(server: Server, body: bytes, path: str) -> None:
    """Nesting without end, numbers that no type holds, halves of characters, fields given twice."""
    if server.settings.max_body_bytes < ROOM:
        server.set(max_body_bytes=ROOM)
    response = server.send("POST", path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@RELAXED
@given(media=MEDIA)
def test_any_content_type_is_read_or_refused(server: Server, media: str) -> None:
    headers = {"content-type": media.encode("latin-1")}
    response = server.send("POST", "/generate", content=b'{"input_ids": [1]}', headers=headers)
    assert response.status_code in (200, 415), response.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"input_ids": [1], "input_ids": [99999]}',
        b'{"input_ids": [1], "rid": "a", "rid": ""}',
        b'{"input_ids": [1], "input_ids": [1], "input_ids": []}',
    ],
    ids=repr,
)
def test_of_a_field_given_twice_the_last_is_checked(server: Server, body: bytes) -> None:
    response = server.send("POST", "/generate", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


@RELAXED
@given(ids=IDS, width=st.integers(-1, 25), count=st.integers(-1, 25))
def test_accepts_exactly_what_is_in_range(server: Server, ids: list[int], width: int, count: int) -> None:
    params = {"beam_width": width, "n": count}
    response = server.generate(input_ids=ids, sampling_params=params)
    right = len(ids) > 0 and all(0 <= token < 27 for token in ids) and 1 <= count <= width <= 20
    assert (response.status_code == 200) == right
    if right:
        assert len(response.json()["meta_info"]["beam_results"]) == count
