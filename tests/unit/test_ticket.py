"""The ticket survives SGLang's HTTP route, and nothing else passes for one."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.messages import AttemptId
from xgr_runtime.wire.sglang_ticket import SglangTicket, request_id

numbers = st.integers(0, 2**62 - 1)
counts = st.integers(1, 2**31 - 1)
ids = st.builds(AttemptId, numbers, numbers, st.integers(1, 99), numbers, numbers)


@given(id=ids, address=st.text(max_size=100), tokens=counts, timeout=st.floats(0, 1e6))
def test_comes_back_as_it_went(id: AttemptId, address: str, tokens: int, timeout: float) -> None:
    ticket = SglangTicket(id, address, tokens, timeout)
    text = ticket.to_text()
    assert SglangTicket.from_text(text) == ticket
    # SGLang joins it to a port and JSON carries it: no colon, no slash, no padding.
    assert text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "xgr1.",
        "xgr1.####",
        "xgr1.AAAA",
        "xgr1." + "A" * 10_000,
        "xgr1.9Z",
        SglangTicket(AttemptId(1, 2, 3, 4, 5), "ipc://x", 7, 1.0).to_text() + "AAAA",
        SglangTicket(AttemptId(1, 2, 3, 4, 5), "ipc://x", 7, 1.0).to_text()[:-4],
        SglangTicket(AttemptId(1, 2, 3, 4, 2**63), "ipc://x", 7, 1.0).to_text(),
        SglangTicket(AttemptId(1, 2, 3, 4, 5), "ipc://x", 2**31, 1.0).to_text(),
        SglangTicket(AttemptId(1, 2, 3, 4, 5), "ipc://x", 7, float("nan")).to_text(),
        "xgr1." + base64.urlsafe_b64encode(b"\x91" * 3000).decode(),
    ],
    ids=[
        "empty",
        "a host",
        "no body",
        "not base64",
        "zeros",
        "long",
        "short",
        "with a tail",
        "cut off",
        "a large number",
        "many tokens",
        "no time",
        "nested",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"bootstrap_host|ticket"):
        SglangTicket.from_text(text)


@given(first=ids, second=ids)
def test_no_request_id_begins_with_another(first: AttemptId, second: AttemptId) -> None:
    """SGLang aborts every request whose id begins with the one given."""
    same = (first.router, first.request, first.attempt) == (second.router, second.request, second.attempt)
    assert request_id(second).startswith(request_id(first)) == same


def test_wire_form_is_small() -> None:
    ticket = SglangTicket(AttemptId(2**62, 2**40, 3, 2**62, 2**62), "ipc://" + "x" * 94, 8192, 30.0)
    assert len(msgspec.msgpack.encode(ticket)) < 200
