"""`xgr ask` against a live server: a table of what follows, or one line that says what is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from live_http import serving

from xgr_runtime.cli import main

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with serving(server.app) as live:
        yield f"http://127.0.0.1:{live.address[1]}"


def run(url: str, capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(["ask", *argv, "--url", url]) == code
    out, err = capsys.readouterr()
    return out, err


def test_a_table_of_results(
    url: str, server: Server, dispatch: FakeDispatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = server.generate(history=["0"], sampling_params={"n": 3}).json()["meta_info"]["beam_results"]
    out, err = run(url, capsys, "0", "-n", "3", "--width", "7", "--exclude-history", "--deny", "9", "8")
    head, *rows = out.splitlines()
    assert head.split() == ["item", "score", "title", "SID"] and len(rows) == 3
    assert [row.split()[1] for row in rows] == [result["items"][0] for result in right]
    assert "2 of deny unknown" not in err and "tokens" in err
    assert (dispatch.jobs[-1].width, dispatch.jobs[-1].results) == (7, 3)


def test_items_of_another_program_and_the_answer_as_it_came(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("0\n1\n"))
    out, _ = run(url, capsys, "-", "--json")
    assert len(json.loads(out)["meta_info"]["beam_results"]) == 10


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "ITEM ..., or --text"),
        (["0", "--text", "x"], 2, "ITEM ..., or --text"),
        (["no-such-item"], 1, "history"),
        (["0", "--where", "price <"], 1, "where"),
        (["0", "-n", "9", "--width", "3"], 1, "beam_width"),
        (["0", "--variable", "x"], 2, "NAME=TEXT"),
    ],
)
def test_one_line_says_what_is_wrong(
    url: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    out, err = run(url, capsys, *argv, code=code)
    assert not out and err.startswith("xgr ask: error: ") and err.count("\n") == 1 and said in err
