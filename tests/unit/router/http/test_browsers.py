"""A server on loopback without a key: its own clients are served, web pages are not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_http import check, read_one, serving

from router.http.server.browsers import Browsers, host_name
from xgr_runtime.errors import ConfigError
from xgr_runtime.transport.addresses import check_host_names, is_loopback

if TYPE_CHECKING:
    import httpx
    from conftest import FakeDispatch, Server

GET = [
    *("/liveness", "/readiness", "/health", "/health_generate", "/metrics", "/workers", "/trace"),
    *("/model_info", "/server_info", "/v1/models", "/docs", "/openapi.json", "/nothing"),
]
ROUTES = [
    *(("GET", path) for path in GET),
    ("POST", "/generate"),
    ("POST", "/abort_request"),
    ("POST", "/flush_cache"),
]
OURS = [
    *(
        "localhost",
        "localhost:30000",
        "LocalHost:1",
        "localhost.",
        "a.localhost:80",
        "127.0.0.1",
        "127.0.0.1:30000",
    ),
    *("127.8.9.10:30000", "[::1]", "[::1]:30000", "localhost:"),
]
FOREIGN = [
    *(
        "xgr",
        "evil.example",
        "evil.example:30000",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
    ),
    *(
        "192.168.1.5:30000",
        "10.0.0.1",
        "0.0.0.0:30000",
        "[::]:30000",
        "[fe80::1]",
        "169.254.169.254",
        "128.0.0.1",
    ),
    *(
        "localhost@evil.example",
        "localhost:80@evil.example",
        "evil.example#localhost",
        "evil.example/.localhost:x",
    ),
    *(
        "",
        ":30000",
        "[::1",
        "[::1]x",
        "[localhost",
        "::1",
        "127.0.0.1:80:80",
        "localhost:http",
        "2130706433",
        "127.1",
    ),
    "a" * 20_000,
]
BODY = {"/generate": {"input_ids": [1]}, "/abort_request": {"rid": "none"}}


@pytest.fixture(autouse=True)
def guarded(server: Server) -> None:
    server.set(guarded=True)


def ask(server: Server, method: str, path: str, **headers: str) -> httpx.Response:
    """With the body that belongs there."""
    given = {"host": "localhost:30000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return server.send(method, path, headers=given, json=BODY.get(path))


def refused(response: httpx.Response) -> bool:
    """Whether it was, for who asked; then it tells nothing else."""
    if response.status_code != 403:
        return False
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("foreign_page", "permission_error")
    assert "--allowed-hosts" in error["message"]
    assert len(response.content) < 1000
    return True


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
def test_the_host_is_a_name_of_loopback(
    server: Server, dispatch: FakeDispatch, method: str, path: str
) -> None:
    for host in OURS:
        assert ask(server, method, path, host=host).status_code in (200, 404), host
    dispatch.jobs.clear()
    for host in FOREIGN:
        assert refused(ask(server, method, path, host=host)), host
    assert not dispatch.jobs


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[path for _, path in ROUTES])
def test_a_page_is_one_of_loopback(server: Server, dispatch: FakeDispatch, method: str, path: str) -> None:
    for host in OURS:
        assert ask(server, method, path, origin=f"http://{host}").status_code in (200, 404), host
    dispatch.jobs.clear()
    others = [
        "null",
        "file://",
        "",
        "localhost",
        "chrome-extension://localhost",
        "http://localhost http://evil.example",
    ]
    for origin in [*others, *(f"https://{host}" for host in FOREIGN)]:
        assert refused(ask(server, method, path, origin=origin)), origin
    assert not dispatch.jobs


def test_who_names_no_host_is_no_browser(server: Server) -> None:
    assert not refused(server.send("GET", "/workers", headers={"host": "localhost"}))
    scope = {**server.scope("/workers"), "method": "GET", "headers": []}
    Browsers(server.settings).check(scope)


def test_of_two_hosts_both_are_ours(server: Server) -> None:
    headers = [("host", "localhost"), ("host", "evil.example")]
    assert refused(server.send("GET", "/workers", headers=headers))


TARGETS = ["http://{}/workers", "HTTP://{}/workers?fresh=false", "https://{}/workers", "ws://{}/workers#a"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_host_in_the_target_is_a_name_of_loopback(server: Server, target: str) -> None:
    """It counts before the header of that name."""
    with serving(server.app) as live:
        for host in ("evil.example", "EVIL.example:80", "10.0.0.1", "[fe80::1]", "localhost@evil.example"):
            head = f"GET {target.format(host)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            for offer in ("", "Upgrade: h2c\r\nConnection: Upgrade\r\n"):
                with live.connect() as client:
                    client.sendall(f"{head}{offer}\r\n".encode())
                    assert "not loopback's" in check(read_one(client), 403, "foreign_page")
        head = f"GET {target.format('localhost:80')} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert live.ask(head.encode())[0] == 200
        assert live.ask(head.replace("http://localhost:80", "").encode())[0] == 200
        head = "GET /docs?http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert live.ask(head.encode())[0] == 200, "a query is no host"


NAVIGATED = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}


def test_what_other_sites_embed_is_refused(server: Server) -> None:
    """An image, a script: a browser sends no Origin with them. A link that somebody follows is served."""
    assert refused(ask(server, "GET", "/trace", sec_fetch_site="cross-site", sec_fetch_mode="no-cors"))
    assert refused(ask(server, "POST", "/flush_cache", **NAVIGATED))
    assert ask(server, "GET", "/docs", **NAVIGATED).status_code == 200
    for site in ("Cross-Site", '"cross-site"', "cross-site, same-origin", "same-origin;a", "other", ""):
        assert refused(ask(server, "GET", "/workers", sec_fetch_site=site)), site
    for site in ("none", "same-origin", "same-site"):
        assert ask(server, "GET", "/workers", sec_fetch_site=site).status_code == 200


FORMS = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=a",
    "",
    "*/*",
    "json",
]


@pytest.mark.parametrize("path", ["/generate", "/abort_request", "/flush_cache"])
@pytest.mark.parametrize("media", [*FORMS, None], ids=str)
@pytest.mark.parametrize("body", [b"", b'{"input_ids": [1]}'], ids=["empty", "body"])
def test_forms_have_no_effect(
    server: Server, dispatch: FakeDispatch, path: str, media: str | None, body: bytes
) -> None:
    headers = {"host": "localhost"} | ({} if media is None else {"content-type": media})
    response = server.send("POST", path, headers=headers, content=body)
    if media is None and not body:  # as curl -X POST sends it
        assert response.status_code == (200 if path == "/flush_cache" else 400)
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (415, "wrong_media_type")
    assert not dispatch.jobs


def test_chunks_without_a_type_are_a_body(server: Server) -> None:
    headers = {"host": "localhost", "transfer-encoding": "chunked"}
    assert server.send("POST", "/flush_cache", headers=headers).status_code == 415


def test_hosts_may_be_added(server: Server) -> None:
    server.set(guarded=True, allowed_hosts=["Shop.example", "xgr"])
    for host in ("shop.example", "SHOP.example:443", "xgr", *OURS):
        assert ask(server, "GET", "/workers", host=host).status_code == 200
        assert ask(server, "POST", "/generate", host=host, origin=f"https://{host}").status_code == 200
    assert (
        ask(server, "GET", "/trace", origin="https://shop.example", sec_fetch_site="cross-site").status_code
        == 200
    )
    for host in ("a.shop.example", "shop.example.evil", "evil.example"):
        assert refused(ask(server, "GET", "/workers", host=host))


@pytest.mark.parametrize(
    "changes", [{"guarded": False}, {"guarded": False, "api_key": "k3y"}], ids=["open", "key"]
)
def test_elsewhere_keys_are_what_guards(server: Server, changes: dict[str, Any]) -> None:
    server.set(**changes)
    for path in ("/health", "/generate"):
        method = "POST" if path in BODY else "GET"
        headers = {"host": "evil.example", "origin": "https://evil.example", "authorization": "Bearer k3y"}
        assert ask(server, method, path, **headers).status_code == 200


PARTS = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    "evil",
    ".",
    ":",
    "80",
    "@",
    "/",
    "[",
    "]",
    " ",
    "\0",
    "é",
    "²",
    "%2e",
    "#",
]
RIGHT = re.compile(r"(([a-z0-9.]*[.])?localhost[.]?|127(\.[0-9]+){3}[.]?|\[::1\])(:[0-9]*)?")


@settings(max_examples=500, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS), max_size=6).map("".join))
def test_nothing_beside_a_name_makes_it_ours(text: str) -> None:
    name = host_name(text)
    if is_loopback(name) or name.endswith(".localhost"):
        assert RIGHT.fullmatch(text)


@pytest.mark.parametrize("name", ["http://a", "a:80", "", "*", "a/b", "a b", "ä", "[::1]", "a" * 300])
def test_what_is_no_name_is_refused_at_start(name: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-hosts"):
        check_host_names(["shop.example", name])
