"""Proxies in the environment: used for other machines, never for this one."""

import asyncio

import pytest

from xgr_runtime.client import AsyncXgrClient, XgrClient

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:30000", False),
        ("http://127.8.8.8", False),
        ("http://localhost:1", False),
        ("https://xgr.localhost", False),
        ("http://[::1]:30000", False),
        ("http://192.0.2.7:30000", True),
        ("https://recommender.example", True),
        ("http://localhost.example", True),
    ],
)
def test_who_is_reached_through_a_proxy(url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with XgrClient(url) as client:
        assert bool(client.http._mounts) is proxied
    asynchronous = AsyncXgrClient(url)
    assert bool(asynchronous.http._mounts) is proxied
    asyncio.run(asynchronous.close())
