"""Bodies and answers that are packed: within limits on what comes out, and as the client prefers."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import pytest

from router.http.server import codings
from router.http.server.codings import best_coding

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from conftest import FakeDispatch, Server

BODY = json.dumps({"input_ids": [3, 11]}).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "br": brotli.compress,
}


def ask(server: Server, coding: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return server.send("POST", "/generate", content=content, headers=headers)


@pytest.mark.parametrize("coding", PACK)
def test_a_packed_body_is_unpacked(server: Server, dispatch: FakeDispatch, coding: str) -> None:
    assert ask(server, coding, PACK[coding](BODY)).status_code == 200
    assert dispatch.jobs[-1].tokens.tolist() == [3, 11]


def test_gzip_of_several_members_and_of_single_bytes(server: Server, dispatch: FakeDispatch) -> None:
    halves = gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])
    assert ask(server, "gzip", halves).status_code == 200
    for coding in ("gzip", "br"):
        unpacked = codings._UNPACKERS[coding]()
        packed = PACK[coding](BODY * 40)
        out = [piece for at in range(len(packed)) for piece in unpacked.unpack(packed[at : at + 1])]
        unpacked.finish()
        assert b"".join(out) == BODY * 40


@pytest.mark.parametrize("coding", PACK)
def test_the_limit_is_on_what_comes_out(server: Server, coding: str) -> None:
    server.set(max_body_bytes=1 << 20)
    answer = ask(server, coding, PACK[coding](b" " * (1 << 23)))
    assert answer.status_code == 413 and "1048576 bytes" in answer.text


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("damage", ["cut", "another", "behind"])
def test_a_damaged_body_is_refused(server: Server, coding: str, damage: str) -> None:
    whole = PACK[coding](BODY * 99)
    content = {"cut": whole[:-4], "another": BODY, "behind": whole + b"more"}[damage]
    answer = ask(server, coding, content)
    assert answer.status_code == 400 and "as its header Content-Encoding says" in answer.text


def many(server: Server, accepted: str | None) -> httpx.Response:
    body = {"input_ids": [3], "sampling_params": {"beam_width": 20}}
    headers = {} if accepted is None else {"accept-encoding": accepted}
    return server.send("POST", "/generate", json=body, headers=headers)


@pytest.mark.parametrize(
    ("accepted", "coding"), [("br, gzip", "br"), ("gzip;q=1, br;q=0.5", "gzip"), ("*", "br")]
)
@pytest.mark.parametrize("aside", [True, False])
def test_a_long_answer_is_packed(
    server: Server, monkeypatch: pytest.MonkeyPatch, accepted: str, coding: str, aside: bool
) -> None:
    monkeypatch.setattr(codings, "LEAST", 500)
    monkeypatch.setattr(codings, "ASIDE", 0 if aside else 1 << 30)
    plain, packed = many(server, "identity"), many(server, accepted)
    assert plain.status_code == 200 and len(plain.content) > 500, plain.text
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == coding and packed.headers["vary"] == "accept-encoding"
    assert int(packed.headers["content-length"]) < len(plain.content)
    assert packed.json()["meta_info"]["beam_results"] == plain.json()["meta_info"]["beam_results"]


def test_a_short_answer_and_an_error_are_not(server: Server) -> None:
    assert "content-encoding" not in many(server, "gzip").headers
    answer: Any = server.send("POST", "/generate", json={}, headers={"accept-encoding": "br"})
    assert answer.status_code == 400 and "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("accepted", "best"),
    [
        ("", None),
        ("identity", None),
        ("deflate", None),
        ("gzip", "gzip"),
        ("GZIP , BR ;q=0.9", "gzip"),
        ("br;q=0, gzip;q=0", None),
        ("br;q=x", None),
        ("*;q=0.1", "br"),
        ("br;q=0, *", "gzip"),
        (",;=,;;q=", None),
    ],
)
def test_what_a_client_prefers(accepted: str, best: str | None) -> None:
    assert best_coding(accepted) == best


def test_gzip_is_what_others_read() -> None:
    assert gzip.decompress(codings._PACKERS["gzip"](BODY)) == BODY
    assert zlib.decompress(codings._PACKERS["gzip"](BODY), 31) == BODY
