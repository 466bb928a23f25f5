"""Which key opens which route, and that no key is ever told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from router.http.server import keys
from router.http.server.keys import PUBLIC_PATHS

if TYPE_CHECKING:
    import httpx
    from conftest import Server

OPERATORS = {
    *("/catalog", "/catalog/items", "/filters", "/filters/x"),
    *("/flush_cache", "/trace", "/workers", "/workers/decode-0"),
}
CLIENT, ADMIN = "client-k3y", "admin-k3y"
ROUTES = [
    ("POST", "/generate"),
    ("POST", "/abort_request"),
    ("POST", "/flush_cache"),
    ("POST", "/workers"),
    ("DELETE", "/workers/decode-0"),
    ("POST", "/catalog/items"),
    *(("GET", path) for path in ("/catalog", "/filters", "/filters/x")),
    *(("GET", path) for path in ("/workers", "/trace", "/server_info", "/model_info", "/v1/models")),
    *(("GET", path) for path in ("/openapi.json", "/nothing")),
    *(("GET", path) for path in sorted(PUBLIC_PATHS)),
]


def ask(server: Server, method: str, path: str, authorization: str | bytes | None) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    body = {"input_ids": [1]} if path == "/generate" else {"rid": "none"}
    return server.send(method, path, headers=headers, json=body if method == "POST" else None)


def code(response: httpx.Response) -> str | None:
    """Of the refusal, where it is one that has to do with keys."""
    if response.status_code not in (401, 403):
        return None
    return str(response.json()["error"]["code"])


GIVEN = [
    (None, "missing_api_key"),
    ("Basic abc", "missing_api_key"),
    ("Bearer", "missing_api_key"),
    ("Bearer ", "missing_api_key"),
    ("Bearer wrong", "wrong_api_key"),
    (f"Bearer {CLIENT}x", "wrong_api_key"),
    (f"Bearer {CLIENT[:-1]}", "wrong_api_key"),
    (f"Bearer {CLIENT.upper()}", "wrong_api_key"),
    ("Bearer " + "x" * 5000, "wrong_api_key"),
    ("Bearer schlüssel".encode(), "wrong_api_key"),
    (b"Bearer \xff\xfe", "wrong_api_key"),
    (f"bearer {CLIENT}", None),
    (f"Bearer {CLIENT}", None),
]


@pytest.mark.parametrize(("given", "refusal"), GIVEN, ids=lambda value: f"{value!s:.30}")
def test_one_key_for_all_routes(server: Server, given: str | bytes | None, refusal: str | None) -> None:
    server.set(api_key=CLIENT)
    for method, path in ROUTES:
        response = ask(server, method, path, given)
        assert code(response) == (None if path in PUBLIC_PATHS else refusal), path
        assert ("www-authenticate" in response.headers) == (response.status_code == 401)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
def test_the_clients_key_does_not_open_the_operators_routes(server: Server, method: str, path: str) -> None:
    server.set(api_key=CLIENT, admin_api_key=ADMIN)
    admin, public = path in OPERATORS, path in PUBLIC_PATHS
    assert code(ask(server, method, path, f"Bearer {CLIENT}")) == ("wrong_api_key" if admin else None)
    assert code(ask(server, method, path, f"Bearer {ADMIN}")) is None
    assert code(ask(server, method, path, "Bearer else")) == (None if public else "wrong_api_key")
    assert code(ask(server, method, path, None)) == (None if public else "missing_api_key")


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
def test_an_admin_key_alone_locks_only_its_routes(server: Server, method: str, path: str) -> None:
    server.set(admin_api_key=ADMIN)
    assert code(ask(server, method, path, None)) == ("missing_api_key" if path in OPERATORS else None)
    assert code(ask(server, method, path, f"Bearer {ADMIN}")) is None


def test_the_refusal_names_the_key_it_wants(server: Server) -> None:
    server.set(api_key=CLIENT, admin_api_key=ADMIN)
    message = ask(server, "GET", "/trace", f"Bearer {CLIENT}").json()["error"]["message"]
    assert message.startswith("/trace needs the admin key")


def test_keys_are_compared_as_digests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one length and all of them: how long it takes tells nothing about any."""
    compared: list[tuple[bytes, bytes]] = []

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(keys.hmac, "compare_digest", noting)  # type: ignore[attr-defined]
    server.set(api_key=CLIENT, admin_api_key=ADMIN)
    for given in (CLIENT, ADMIN, "x", "x" * 1000):
        compared.clear()
        ask(server, "GET", "/server_info", f"Bearer {given}")
        assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 2


def test_no_key_is_ever_told(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.set(api_key=CLIENT, admin_api_key=ADMIN)
    told = [repr(server.settings)]
    for method, path in ROUTES:
        for given in (CLIENT, ADMIN, "wr0ng-k3y"):
            response = ask(server, method, path, f"Bearer {given}")
            told += [response.text, str(response.headers)]
    assert "k3y" not in "".join([*told, caplog.text])
