"""`xgr generate`: every line has one row in the end, whatever happens on the way there."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet
import pytest
from live_http import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from xgr_runtime import cli
from xgr_runtime.cli.generate import asking, journal

Say = Callable[[dict[str, Any], int], Response | None]


def answer(body: dict[str, Any]) -> Response:
    """Two SIDs, the second with two items, named after the request."""
    name = body["history"][0]
    results = [
        {
            "output_ids": [1, 2],
            "items": [f"{name}-a"],
            "meta_info": {"sequence_score": -1.0, "cumulative_logprob": -2},
        },
        {
            "output_ids": [1, 3],
            "items": [f"{name}-b", "c"],
            "meta_info": {"sequence_score": -3, "cumulative_logprob": -6},
        },
    ]
    timing = dict.fromkeys(("queue", "prefill", "transfer", "decode", "forward", "wait"), 0.0)
    meta = {
        "id": "r",
        "finish_reason": {"type": "length", "length": 2},
        "prompt_tokens": 3,
        "cached_tokens": 0,
        "completion_tokens": 2,
        "e2e_latency": 0.1,
        "sequence_score": -1.0,
        "cumulative_logprob": -2.0,
        "catalog_version": "v1",
        "attempts": 1,
        "timing": timing,
        "dropped_items": 0,
        "unknown_items": {"allow": 0, "deny": 0, "history": 0},
        "beam_results": results,
    }
    return JSONResponse({"rid": "r", "text": "", "output_ids": [1, 2], "items": ["a"], "meta_info": meta})


def error(status: int, code: str, retryable: bool, after: str = "0") -> Response:
    detail = {"message": f"it is {code}", "type": "t", "param": None, "code": code}
    body = {"error": detail, "request_id": "r", "retryable": retryable}
    return JSONResponse(body, status, {"retry-after": after})


class Router:
    """Answers /generate as it is told, and remembers what it was asked. `say` gives an answer, or None."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.say: Say = lambda body, number: None
        self.lock = threading.Lock()

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        with self.lock:
            self.asked.append(body)
            self.counts[body["history"][0]] += 1
            number = self.counts[body["history"][0]]
        return self.say(body, number) or answer(body)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Router, str]]:
    monkeypatch.setattr(asking, "FIRST_PAUSE", 0.01)
    played = Router()
    routes = [
        Route("/generate", played.generate, methods=["POST"]),
        Route("/readiness", lambda request: PlainTextResponse("")),
    ]
    with serving(Starlette(routes=routes), rest_seconds=60.0) as live:
        yield played, f"http://127.0.0.1:{live.address[1]}"


def written(folder: Path, count: int = 20, **more: Any) -> Path:
    path = folder / "histories.jsonl"
    rows = [{"user": f"u{row}", "history": [f"i{row}"], **more} for row in range(count)]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def run(url: str, source: Path, out: Path, *flags: str) -> int:
    return cli.main(["generate", str(source), "--out", str(out), "--keep", "user", "--url", url, *flags])


def rows_of(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(out).to_pylist())
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.parquet"])
def test_each_line_has_its_row_in_order(name: str, router: tuple[Router, str], tmp_path: Path) -> None:
    played, url = router
    out = tmp_path / name
    assert run(url, written(tmp_path), out, "--beam-width", "7", "--in-flight", "5") == 0
    rows = rows_of(out)
    assert [row["line"] for row in rows] == list(range(1, 41, 2)), "lines as an editor counts them"
    assert [row["user"] for row in rows] == [f"u{row}" for row in range(20)]
    assert rows[3]["items"] == ["i3-a", "i3-b", "c"] and rows[3]["scores"] == [-1, -3, -3]
    assert rows[3]["sids"] == [[1, 2], [1, 3], [1, 3]] and rows[3]["catalog_version"] == "v1"
    assert not rows[3].get("error") and not (tmp_path / f"{name}.partial").exists()
    body = played.asked[0]
    assert body["priority_class"] == "batch" and body["sampling_params"] == {"beam_width": 7}
    assert "user" not in body and body["timeout_ms"] == 3_600_000


def test_a_lines_own_fields_count_before_those_of_the_command(
    router: tuple[Router, str], tmp_path: Path
) -> None:
    played, url = router
    source = written(tmp_path, 1, sampling_params={"n": 3}, timeout_ms=5, priority_class="online")
    assert run(url, source, tmp_path / "o.jsonl", "--n", "9", "--beam-width", "4") == 0
    (body,) = played.asked
    assert body["sampling_params"] == {"beam_width": 4, "n": 3} and body["timeout_ms"] == 5
    assert body["priority_class"] == "online"


def test_what_may_succeed_later_is_asked_again_and_what_may_not_is_an_error(
    router: tuple[Router, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played, url = router

    def say(body: dict[str, Any], number: int) -> Response | None:
        if body["history"] == ["i4"]:
            return error(400, "invalid_value", False)
        if number < 3:
            return [error(503, "overloaded", True), PlainTextResponse("bad gateway", 502)][number - 1]
        return None

    played.say = say
    out = tmp_path / "o.parquet"
    assert run(url, written(tmp_path, 8), out) == 1
    rows = rows_of(out)
    assert [row["error"] for row in rows] == [None] * 4 + ["it is invalid_value"] + [None] * 3
    assert rows[4]["items"] == [] and played.counts == {f"i{row}": 1 if row == 4 else 3 for row in range(8)}
    assert "8 lines, 1 of them with an error; line 9: it is invalid_value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "torn", [b"", b'{"line":39,"kept"', b"\x00" * 7 + b"\n"], ids=["clean", "torn", "lost"]
)
def test_a_run_that_ended_early_goes_on(torn: bytes, router: tuple[Router, str], tmp_path: Path) -> None:
    """Whatever was answered is not asked again, and what was not stands there once."""
    played, url = router
    source, out = written(tmp_path), tmp_path / "o.jsonl"
    played.say = lambda body, number: error(403, "wrong_api_key", False) if len(played.asked) > 8 else None
    assert run(url, source, out, "--in-flight", "3") == 1, "the key was changed meanwhile"
    partial = tmp_path / "o.jsonl.partial"
    done = len(partial.read_bytes().splitlines()) - 1
    assert not out.exists() and done >= 6
    with partial.open("ab") as file:
        file.write(torn)
    before, played.say = Counter(played.counts), lambda body, number: None
    assert run(url, source, out) == 0
    again = played.counts - before
    assert sum(again.values()) == 20 - done and max(again.values()) == 1
    assert [row["line"] for row in rows_of(out)] == list(range(1, 41, 2)) and not partial.exists()


def test_a_run_of_other_lines_or_settings_is_another_one(
    router: tuple[Router, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played, url = router
    source, out = written(tmp_path), tmp_path / "o.jsonl"
    played.say = lambda body, number: error(403, "wrong_api_key", False)
    assert run(url, source, out) == 1
    assert run(url, source, out, "--n", "3") == 2
    assert "is of a run with other lines or settings" in capsys.readouterr().err
    written(tmp_path, 19)
    assert run(url, source, out) == 2


def test_two_at_once(router: tuple[Router, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, url = router
    with journal.Journal(tmp_path / "o.jsonl", []):
        assert run(url, written(tmp_path), tmp_path / "o.jsonl") == 2
    assert "another xgr generate writes" in capsys.readouterr().err


def test_patience_ends(
    router: tuple[Router, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played, url = router
    played.say = lambda body, number: error(503, "no_workers", True)
    assert run(url, written(tmp_path, 2), tmp_path / "o.jsonl", "--patience", "1") == 1
    said = capsys.readouterr().err
    assert "nothing was answered for 1 s (it is no_workers)" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "flags", "said"),
    [
        ('{"history": []}\n[1]\n', (), "line 2 is no JSON object"),
        ('{"history": ["a"]\n', (), "line 1 is no JSON object"),
        ("\n \n", (), "has no line"),
        ("{}\n", ("--keep", "items"), "--keep items: the output has a field of that name"),
        ("{}\n", ("--in-flight", "0"), "--in-flight"),
        (None, (), "cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_meant(
    lines: str | None, flags: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    if lines is not None:
        source.write_text(lines)
    try:
        code = cli.main(["generate", str(source), "--out", str(out), "--url", "http://127.0.0.1:1", *flags])
    except SystemExit as ended:  # argparse's
        code = int(ended.code or 0)
    assert code == 2 and said in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("name", "said"), [("o.csv", "must end in .jsonl or .parquet"), ("in.jsonl", "is the file of requests")]
)
def test_outputs_that_cannot_be(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path)
    source = source.rename(tmp_path / "in.jsonl")
    assert run("http://127.0.0.1:1", source, tmp_path / name) == 2
    assert said in capsys.readouterr().err


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", written(tmp_path), tmp_path / "o.jsonl") == 1
    assert "nothing listens at http://127.0.0.1:1" in capsys.readouterr().err


def test_rows_are_as_they_were(tmp_path: Path) -> None:
    row = journal.LineAnswer(3, {"a": msgspec.Raw(b'{"x":[1]}')}, ["é"], [-0.1], [[1]], "v")
    with journal.Journal(tmp_path / "o.jsonl", [1]) as written_to:
        written_to.add(row)
        assert written_to.row(3) == row
    with journal.Journal(tmp_path / "o.jsonl", [1]) as read_again:
        assert read_again.row(3) == row and list(read_again.done) == [3]
