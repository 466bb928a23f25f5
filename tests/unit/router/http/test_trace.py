"""GET /trace: who may ask, what may be asked, and what a request leaves in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trace_rules import check_trace, end_of, slices

from xgr_runtime.errors import Overloaded

if TYPE_CHECKING:
    from conftest import Server


def test_a_request_leaves_its_phases(server: Server) -> None:
    server.generate(input_ids=[1, 2, 3], rid="mine")
    trace = server.get("/trace").json()
    check_trace(trace)
    (whole,) = slices(trace, "request", rid="mine")
    assert whole["args"]["status"] == 200 and whole["args"]["prompt_tokens"] == 3
    (intake,), (compose,) = slices(trace, "intake", rid="mine"), slices(trace, "compose", rid="mine")
    assert whole["ts"] <= intake["ts"] <= end_of(intake) <= compose["ts"] <= end_of(compose) <= end_of(whole)
    assert trace["otherData"]["missing"] == {"ipc:///x": "it is gone"}


def test_a_request_that_fails_is_in_it_too(server: Server) -> None:
    server.dispatch.error = Overloaded("full")
    server.generate(input_ids=[1, 2, 3], rid="mine")
    (whole,) = slices(server.get("/trace").json(), "request", rid="mine")
    assert whole["args"]["status"] == 503


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("seconds=0", "seconds"),
        ("seconds=601", "seconds"),
        ("seconds=nan", "seconds"),
        ("second=1", "second"),
    ],
)
def test_bad_questions_name_the_field(server: Server, query: str, param: str) -> None:
    response = server.get(f"/trace?{query}")
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_the_question_is_described(server: Server) -> None:
    (parameter,) = server.get("/openapi.json").json()["paths"]["/trace"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("seconds", "query", False)
    assert parameter["schema"]["maximum"] == 600 and parameter["schema"]["default"] == 10.0
