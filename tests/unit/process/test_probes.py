"""What a process says of itself to whoever watches it, whatever its loop does and whoever asks."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from ports import free_port
from until import until

from xgr_runtime.errors import ConfigError
from xgr_runtime.process import probes
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.process.probes import MOST_AT_ONCE, answer_probes

Said = Callable[[str], tuple[int, str]]


@pytest.fixture
def lifecycle() -> Iterator[Lifecycle]:
    made = Lifecycle(stuck_timeout=30.0)
    yield made
    made.done()


@pytest.fixture
def url(lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(probes, "PATIENCE", 0.5)
    port = free_port()
    close = answer_probes(f"127.0.0.1:{port}", lifecycle)
    yield f"http://127.0.0.1:{port}"
    close()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10.0, headers={"Connection": "close"}) as client:
        yield client


@pytest.fixture
def said(http: httpx.Client, url: str) -> Said:
    """Status and word of a path."""

    def ask(path: str) -> tuple[int, str]:
        answer = http.get(url + path)
        return answer.status_code, answer.text

    return ask


def test_from_start_to_stop(lifecycle: Lifecycle, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("/liveness") == (200, "starting\n") and said("/readiness") == (503, "starting\n")
    lifecycle.ready({})
    assert said("/liveness") == (200, "ready\n") and said("/readiness") == (200, "ready\n")
    monkeypatch.setattr(lifecycle, "_turned", time.monotonic() - 31.0)
    assert said("/liveness") == (503, "stuck\n") and said("/readiness") == (503, "stuck\n")
    assert not lifecycle.turn()
    assert said("/readiness") == (200, "ready\n")
    lifecycle.stop()
    assert said("/liveness") == (200, "stopping\n") and said("/readiness") == (503, "stopping\n")


def test_a_stop_before_it_is_ready(lifecycle: Lifecycle, said: Said) -> None:
    lifecycle.stop()
    assert said("/readiness") == (503, "stopping\n")


def test_nothing_else_is_there(http: httpx.Client, url: str, said: Said) -> None:
    assert said("/") == (404, "") and said("/metrics") == (404, "")
    assert http.post(url + "/liveness").status_code == 501
    assert http.get(url + "/liveness").headers["server"] == "xgr"


def test_idle_connections_hold_nobody_up_for_long(url: str, said: Said) -> None:
    where = ("127.0.0.1", int(url.rpartition(":")[2]))
    idle = [socket.create_connection(where) for _ in range(2 * MOST_AT_ONCE)]

    def answered() -> bool:
        try:
            return said("/liveness")[0] == 200
        except httpx.HTTPError:
            return False

    until(answered, "those who say nothing are given up", 20.0)
    for connection in idle:
        connection.close()


@pytest.mark.parametrize("address", ["7002", ":7002", "0.0.0.0:", "0.0.0.0:70000", "host:port", "0.0.0.0:-1"])
def test_what_is_no_address_is_named(address: str, lifecycle: Lifecycle) -> None:
    with pytest.raises(ConfigError, match="--probe-address"):
        answer_probes(address, lifecycle)


def test_a_port_that_is_taken_is_named(lifecycle: Lifecycle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{address}: cannot listen there .*choose another"):
            answer_probes(address, lifecycle)
