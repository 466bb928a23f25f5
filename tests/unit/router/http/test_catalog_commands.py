"""`xgr catalog push, edit, rollback, status, history, filter` and the client, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from live_http import serving
from made_catalogs import build_from_arrays
from plain_publisher import PlainPublisher

from router.http import app as app_module
from router.http import make_app
from router.query.models import Models
from xgr_runtime.catalog.store import Store
from xgr_runtime.cli import main
from xgr_runtime.cli.catalog_live import state_lines
from xgr_runtime.client import XgrClient
from xgr_runtime.errors import BadRequest, NotFound, OtherVersion
from xgr_runtime.wire.answers import CatalogInfo, ChangeUnderWay

if TYPE_CHECKING:
    from conftest import Server
    from pytest import CaptureFixture, MonkeyPatch

KEY = "operators-k3y"


@pytest.fixture(autouse=True)
def undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of the routes takes longer than these tests, and is tested elsewhere."""
    monkeypatch.setattr(app_module, "openapi", lambda *args: {})


@pytest.fixture
def url(server: Server, tmp_path: Path, monkeypatch: MonkeyPatch) -> Iterator[str]:
    """Of a server whose catalog changes."""
    monkeypatch.setenv("XGR_API_KEY", KEY)
    server.set(api_key=KEY)
    with Store(tmp_path / "store") as store:
        with store.writing():
            store.push(server.catalog, "first.xgr")
        publisher = PlainPublisher(store, server.catalogs, server.catalog.vocab_size)
        app = make_app(server.dispatch, Models([server.model()]), server.settings, publisher, store)
        with serving(app) as live:
            yield f"http://127.0.0.1:{live.address[1]}"


def run(url: str, capsys: CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What a command printed; of one that fails the one line."""
    assert main(["catalog", *argv, "--url", url]) == code
    out, err = capsys.readouterr()
    assert code == 0 or (err.startswith("xgr catalog: error: ") and err.count("\n") == 1 and not out)
    return str(out + err)


@pytest.fixture
def other(tmp_path: Path, server: Server) -> Path:
    made = build_from_arrays(["p", "q"], server.catalog.sids[:2], vocab_size=server.catalog.vocab_size)
    made.save(tmp_path / "other catalog.xgr")
    return tmp_path / "other catalog.xgr"


def test_a_day_of_a_catalog(
    url: str, server: Server, other: Path, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    first = server.catalogs.newest.version
    lines = [{"hide": "1"}, {"rank": {"2": 5}}, *({"hide": f"nobody-{n}"} for n in range(12))]
    (tmp_path / "edits.ndjson").write_text("\n".join(map(json.dumps, lines)))
    said = run(url, capsys, "edit", str(tmp_path / "edits.ndjson"), "--key", "k", "--version", first)
    second = server.catalogs.newest.version
    assert f"version {second} is served by 1 decode workers after 0.5 ms" in said
    assert "left out (12): nobody-0, nobody-1" in said and "nobody-9, ..." in said
    said = run(url, capsys, "push", str(other), "--no-wait")
    third = server.catalogs.newest.version
    assert f"version {third} is kept" in said and len({first, second, third}) == 3
    assert f"version {third} was current already" in run(url, capsys, "push", str(other))
    assert second in run(url, capsys, "rollback")
    assert third in run(url, capsys, "rollback", third)
    shown = run(url, capsys, "history", "--most", "3").splitlines()
    assert [line.split()[3] for line in shown[1:]] == ["rollback", "rollback", "push"]
    assert shown[3].split()[-2:] == ["yes", "other_catalog.xgr"]
    status = run(url, capsys, "status")
    assert third in status and "ipc:///b gets no requests: it lags" in status


def test_what_is_refused_is_one_line(
    url: str, other: Path, tmp_path: Path, capsys: CaptureFixture[str], monkeypatch: MonkeyPatch
) -> None:
    bad = tmp_path / "bad.ndjson"
    bad.write_text('{"hide": "1"}\n{"add": {"item": "x", "sid": "<a_0>"}}\n')
    assert "line 2: add.sid: has 1 tokens" in run(url, capsys, "edit", str(bad), code=1)
    assert "not 00" in run(url, capsys, "edit", str(bad), "--version", "00", code=1)
    assert "cannot be read" in run(url, capsys, "edit", str(tmp_path / "nowhere"), code=2)
    assert f"catalog build {bad} --model-path" in run(url, capsys, "push", str(bad), code=2)
    assert "cannot be read" in run(url, capsys, "push", str(tmp_path / "nowhere"), code=2)
    assert "the store does not keep ffff" in run(url, capsys, "rollback", "ffff", code=1)
    monkeypatch.setenv("XGR_API_KEY", "another-k3y")
    assert "XGR_ADMIN_API_KEY or XGR_API_KEY" in run(url, capsys, "status", code=1)
    assert "nothing listens" in run("http://127.0.0.1:9", capsys, "history", code=1)
    assert "is no URL" in run("nonsense", capsys, "status", code=2)


def test_conditions_get_names(url: str, server: Server, capsys: CaptureFixture[str]) -> None:
    assert "filter all.of_it is ready: TRUE" in run(url, capsys, "filter", "set", "all.of_it", "TRUE")
    run(url, capsys, "filter", "set", "none", "FALSE")
    assert "is ready: 1 = 2" in run(url, capsys, "filter", "set", "none", "1 = 2")
    shown = [line.split(maxsplit=3) for line in run(url, capsys, "filter", "list").splitlines()]
    assert [(line[0], line[-1].strip()) for line in shown[1:]] == [("all.of_it", "TRUE"), ("none", "1 = 2")]
    assert "filter none is gone" in run(url, capsys, "filter", "remove", "none")
    assert "there is no filter none" in run(url, capsys, "filter", "remove", "none", code=1)
    assert "where at character 1" in run(url, capsys, "filter", "set", "cheap", "price < 5", code=1)
    assert "128 of A-Z" in run(url, capsys, "filter", "set", "a b", "TRUE", code=1)
    with XgrClient(url, KEY) as client:
        assert [one.name for one in client.filters()] == ["all.of_it"]


def test_the_client_does_the_same(url: str, server: Server, other: Path) -> None:
    with XgrClient(url, KEY) as client:
        first = client.catalog().newest
        made = client.edit_items(
            add=[{"item": "new", "sid": server.catalog.sids[0].tolist(), "title": "New"}],
            hide=["1", "nobody"],
            key="k",
            version=first,
        )
        assert made.unknown == ["nobody"] and client.catalog().newest == made.version
        lines = [b'{"hide": "2"}\n', b'{"show": "1"}\n']
        shown = client.edit_lines(lines, "l", made.version)
        assert shown.changed and shown.version == client.edit_lines(lines, "l", made.version).version
        assert client.roll_back().version == made.version
        with pytest.raises(OtherVersion):
            client.edit_items(hide=["2"], version=first)
        with pytest.raises(BadRequest, match=r"update\[0\].item"):
            client.edit_items(update=[{"item": "nobody"}])
        assert client.roll_back().version == first
        assert client.push_catalog(other).version == client.catalog_history(1)[0].version
        with pytest.raises(NotFound):
            client.roll_back("f" * 32)
        with pytest.raises(BadRequest, match="price"):
            client.set_filter("cheap", "price < 5")
        assert client.filters() == []
        with pytest.raises(NotFound):
            client.remove_filter("cheap")


def test_what_is_on_its_way_is_told() -> None:
    way = ChangeUnderWay("v2", "push", 1.25, {"ipc:///a": 0.5})
    info = CatalogInfo(True, "v2", "v1", [], way, {})
    assert state_lines(info) == [
        "version v2 is kept, and not used yet",
        "a push to v2 is under way for 1.2 s, and waits for ipc:///a (50%)",
    ]
    assert "--catalog-store" in state_lines(CatalogInfo(False, "v1", "v1", [], None, {}))[0]
