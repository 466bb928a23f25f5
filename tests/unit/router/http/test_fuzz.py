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


@RELAXED
@given(ids=IDS, width=st.integers(-1, 25), count=st.integers(-1, 25))
def test_accepts_exactly_what_is_in_range(server: Server, ids: list[int], width: int, count: int) -> None:
    params = {"beam_width": width, "n": count}
    response = server.generate(input_ids=ids, sampling_params=params)
    right = len(ids) > 0 and all(0 <= token < 27 for token in ids) and 1 <= count <= width <= 20
    assert (response.status_code == 200) == right
    if right:
        assert len(response.json()["meta_info"]["beam_results"]) == count
