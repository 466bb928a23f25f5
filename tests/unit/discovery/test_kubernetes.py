"""Workers that are pods, by an API that lists, watches, forgets, refuses and hangs up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_api import NAMESPACE, TOKEN, KubernetesApi, make_authority, pod
from until import until

from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.discovery.kubernetes import Account, Api, Follower, PodSource, follower
from xgr_runtime.discovery.watch import Watch
from xgr_runtime.errors import ConfigError

SELECTOR = "app=shop,role in (prefill,decode)"
P0, D0, D1 = (
    WorkerAddress("prefill", "tcp://127.0.0.1:7000#prefill"),
    WorkerAddress("decode", "tcp://127.0.0.1:7001#decode"),
    WorkerAddress("decode", "tcp://127.0.0.1:7002#decode"),
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    make_authority(folder)
    return folder


@pytest.fixture
def api(tmp_path: Path, authority: Path) -> Iterator[KubernetesApi]:
    """With one pod of each kind."""
    with KubernetesApi(tmp_path / "account", authority) as api:
        api.put(pod("p0", "prefill", 7000))
        api.put(pod("d0", "decode", 7001))
        yield api


@pytest.fixture
def source(api: KubernetesApi) -> Iterator[PodSource]:
    made = source_of(api)
    yield made
    made.stop()


def source_of(api: KubernetesApi, url: str = "") -> PodSource:
    client = Api(url or api.url, Account(api.folder))
    return PodSource(Follower(client, "", SELECTOR, jitter=lambda: 0.0), SELECTOR)


def names(source: PodSource, *wanted: WorkerAddress) -> None:
    until(lambda: _named(source) == sorted(wanted), f"{wanted} are named", 10, every=0.005)


def fails(source: PodSource, said: str) -> None:
    until(lambda: said in _problem(source), said, 10, every=0.005)


def _named(source: PodSource) -> list[WorkerAddress] | None:
    try:
        return source.look()
    except ConfigError:
        return None


def _problem(source: PodSource) -> str:
    try:
        source.look()
    except ConfigError as error:
        return str(error)
    return ""


def test_it_names_the_pods_that_there_are(api: KubernetesApi, source: PodSource) -> None:
    assert source.look() == sorted([P0, D0])
    asked = api.asked[0]
    assert asked.query["labelSelector"] == SELECTOR and asked.token == TOKEN
    assert asked.path == f"/api/v1/namespaces/{NAMESPACE}/pods"


def test_pods_come_go_and_change_without_another_list(api: KubernetesApi, source: PodSource) -> None:
    names(source, P0, D0)
    api.put(pod("d1", "decode", 7002, ip=""))
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)
    api.put(pod("d0", "decode", 7001, leaving=True))
    names(source, P0, D1)
    api.remove("d0")
    api.put(pod("d1", "decode", 7001))
    names(source, P0, D0)
    assert len(api.lists) == 1 and len(api.watches) == 1


@pytest.mark.parametrize(
    ("changed", "address"),
    [
        ({"phase": "Pending"}, None),
        ({"phase": "Failed"}, None),
        ({"leaving": True}, None),
        ({"labels": {"app.kubernetes.io/component": "router"}}, None),
        ({"labels": None}, None),
        ({"ip": ""}, None),
        ({"ip": "fd00::7"}, "tcp://[fd00::7]:7009#decode"),
        ({"key": "decode-blue"}, "tcp://127.0.0.1:7009#decode-blue"),
        ({}, "tcp://127.0.0.1:7009#decode"),
    ],
    ids=str,
)
def test_a_pod_that_runs_and_stays_is_a_worker(
    api: KubernetesApi, source: PodSource, changed: dict[str, Any], address: str | None
) -> None:
    api.put(pod("x", "decode", 7009, **changed))
    names(source, P0, D0, *([WorkerAddress("decode", address)] if address else []))


def test_a_pod_that_cannot_be_meant_is_named_once_and_takes_nobody_along(
    api: KubernetesApi, source: PodSource, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(pod("odd", "decode", 1, ports=None))
    api.put(pod("odder", "decode", 1, ports=[{"name": "control", "containerPort": n} for n in (1, 2)]))
    for _ in range(3):
        names(source, P0, D0)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2 and "odd has 0 ports named control" in said[0] and "odder has 2" in said[1]


def test_two_pods_at_one_address_change_nothing(api: KubernetesApi, source: PodSource) -> None:
    names(source, P0, D0)
    api.put(pod("d1", "decode", 7001))
    fails(source, "named twice")
    api.remove("d1")
    names(source, P0, D0)


def test_a_long_list_comes_in_pages(api: KubernetesApi, source: PodSource) -> None:
    api.page = 3
    for number in range(8):
        api.put(pod(f"more-{number}", "decode", 8000 + number))
    assert len(source.look()) == 10
    assert [asked.query.get("continue") for asked in api.lists] == [None, "3", "6", "9"]


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_event_in_many_pieces_is_one(api: KubernetesApi, source: PodSource, piece: int) -> None:
    names(source, P0, D0)
    api.piece = piece
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)
    assert len(api.watches) == 1


@pytest.mark.parametrize("how", ["hang_up", "end_watches"])
def test_a_watch_that_ends_is_taken_up_where_it_was(api: KubernetesApi, source: PodSource, how: str) -> None:
    names(source, P0, D0)
    until(lambda: api.watches, "it watches", 10)
    getattr(api, how)()
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)
    assert len(api.lists) == 1
    assert api.watches[-1].query["resourceVersion"] == api.pods["d0"]["metadata"]["resourceVersion"]
    before = len(api.watches)
    getattr(api, how)()
    until(lambda: len(api.watches) > before, "it watches again", 10)
    assert api.watches[-1].query["resourceVersion"] == api.pods["d1"]["metadata"]["resourceVersion"]


def test_a_bookmark_moves_the_watch_on(api: KubernetesApi, source: PodSource) -> None:
    names(source, P0, D0)
    until(lambda: api.watches, "it watches", 10)
    api.bookmark()
    version = str(api.version)

    def taken_up() -> bool:
        api.end_watches()
        return api.watches[-1].query["resourceVersion"] == version

    until(taken_up, "it watches from the bookmark on", 10)
    assert len(api.lists) == 1 and api.watches[-1].query["allowWatchBookmarks"] == "true"


def test_what_the_server_has_forgotten_is_listed_again(api: KubernetesApi, source: PodSource) -> None:
    names(source, P0, D0)
    until(lambda: api.watches, "it watches", 10)
    api.down()
    api.put(pod("d1", "decode", 7002))
    api.remove("d0")
    api.forget()
    api.up()
    names(source, P0, D1)
    assert len(api.lists) == 2, "410 in the watch: listed again"
    api.put(pod("d0", "decode", 7001))
    names(source, P0, D0, D1)
    assert len(api.lists) == 2


def test_a_lost_api_freezes_the_list_and_its_return_is_the_end_of_that(
    api: KubernetesApi, source: PodSource
) -> None:
    told: list[Any] = []
    watch = Watch(source, source.look(), told.append)
    api.down()
    fails(source, "the connection to the API failed")
    watch.look()
    assert watch.problem and not told, "nobody is told of fewer workers"
    api.put(pod("d1", "decode", 7002))
    api.up()
    until(lambda: (watch.look(), told)[1], "it is followed again", 10)
    assert told == [sorted([P0, D0, D1])] and not watch.problem


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "is its token that of this cluster"),
        (403, "list and watch pods"),
        (500, "500 (no 500)"),
        (429, "429"),
    ],
)
def test_a_refusal_is_said_and_survived(
    api: KubernetesApi, source: PodSource, status: int, said: str
) -> None:
    api.refusal = status
    assert said in _problem(source)
    api.refusal = 0
    names(source, P0, D0)


def test_a_token_that_was_replaced_is_read_anew(api: KubernetesApi, source: PodSource) -> None:
    names(source, P0, D0)
    until(lambda: api.watches, "it watches", 10)
    api.token = "second-token"
    api.hang_up()
    fails(source, "401")
    (api.folder / "token").write_text("second-token")
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)
    assert {asked.token for asked in api.asked} == {TOKEN, "second-token"}


@pytest.mark.parametrize("broken", [b"no json\n", b'{"type": "ADDED", "object": {}}\n', b'{"type": "ODD"}\n'])
def test_an_answer_that_makes_no_sense_is_said_and_listed_again(
    api: KubernetesApi, source: PodSource, broken: bytes
) -> None:
    api.broken = broken
    source.look()
    fails(source, "none that we know")
    api.broken = b""
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)


def test_half_an_event_is_none_and_nothing_is_listed_for_it(api: KubernetesApi, source: PodSource) -> None:
    """The server died in the middle of a line: what it had said before still holds."""
    names(source, P0, D0)
    until(lambda: api.watches, "it watches", 10)
    api.broken = b'{"type": "DELETED", "object": {"metadata": {"name": "d0"'
    api.end_watches()
    until(lambda: len(api.watches) > 1, "it watches again", 10)
    api.end_watches()
    api.broken = b""
    api.put(pod("d1", "decode", 7002))
    names(source, P0, D0, D1)
    assert len(api.lists) == 1


def test_a_line_without_end_is_not_taken_in(
    api: KubernetesApi, source: PodSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MOST_EVENT_BYTES", 10_000)
    api.broken = b"x" * 20_000
    source.look()
    fails(source, "more than 10000 bytes")


def test_a_server_that_is_silent_is_given_up(
    api: KubernetesApi, source: PodSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LIST_SECONDS", 0.1)
    monkeypatch.setattr(follower, "WATCH_SECONDS", 0.1)
    api.silent = True
    source.look()
    fails(source, "silent for too long")


def test_a_dead_api_is_not_asked_in_a_hurry(api: KubernetesApi, source: PodSource) -> None:
    """A server that ends each watch at once is one that says nothing: pauses grow."""
    names(source, P0, D0)
    for _ in range(40):
        api.end_watches()
        threading.Event().wait(0.02)
    assert len(api.watches) <= 6


def test_pauses_grow_to_a_bound(api: KubernetesApi) -> None:
    made = Follower(Api(api.url, Account(api.folder)), "", SELECTOR, jitter=lambda: 1.0)
    pauses = [made._pause(failures) for failures in (0, 1, 2, 3, 9, 10**6)]
    assert pauses == [0.0, 0.2, 0.4, 0.8, 30.0, 30.0]


def test_another_authority_is_not_trusted(api: KubernetesApi, source: PodSource, tmp_path: Path) -> None:
    make_authority(tmp_path / "other")
    (tmp_path / "other" / "ca.crt").replace(api.folder / "ca.crt")
    assert "certificate is not to be trusted" in _problem(source)
    assert not api.asked, "no token was sent"


def test_a_certificate_of_another_name_is_not_trusted(api: KubernetesApi) -> None:
    made = source_of(api, f"https://127.0.0.1:{api.port}")
    assert "certificate is not to be trusted" in _problem(made)
    assert not api.asked
    made.stop()


@pytest.mark.parametrize("name", ["token", "namespace", "ca.crt"])
def test_what_the_account_lacks_is_named_and_waited_for(
    api: KubernetesApi, source: PodSource, name: str
) -> None:
    (api.folder / name).rename(api.folder / "away")
    assert f"{api.folder / name} cannot be" in _problem(source)
    (api.folder / "away").rename(api.folder / name)
    names(source, P0, D0)


@pytest.mark.parametrize("content", [b"", b"two words", b"line\nbreak: x", b"\xff", b"x" * 70_000])
def test_what_is_no_token_is_not_sent(api: KubernetesApi, source: PodSource, content: bytes) -> None:
    (api.folder / "token").write_bytes(content)
    assert "is not one word of text" in _problem(source)
    assert not api.asked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kubernetes",
        "http://10.0.0.1",
        "https://",
        "ftp://x",
        "https://x:port",
        "https://a@x",
        "https://x/p",
    ],
)
def test_what_is_no_address_of_an_api_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kubernetes-api"):
        Api(url, Account(tmp_path))
