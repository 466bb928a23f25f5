"""`xgr trace` where something is wrong: one clear line, and no file."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from xgr_runtime.cli import main

ERROR = (
    '{"error": {"message": "%s", "type": "t", "param": null, "code": "%s"}, '
    '"request_id": "r", "retryable": false}'
)


class Answering(BaseHTTPRequestHandler):
    """Answers every GET with what the test set."""

    status, body = 200, "{}"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body.encode())

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (401, ERROR % ("this deployment needs a key", "missing_api_key"), 1, "--api-key"),
        (403, ERROR % ("the key is not this deployment's", "wrong_api_key"), 1, "--api-key"),
        (404, ERROR % ("there is no /trace", "not_found"), 1, "older"),
        (404, "<html>nothing here</html>", 1, "not an xgr router"),
        (400, ERROR % ("seconds: expected more", "invalid_value"), 1, "seconds"),
        (200, "<html>welcome</html>", 1, "not an xgr router"),
        (200, "{}", 1, "not an xgr router"),
    ],
    ids=["no-key", "wrong-key", "old", "other-server", "bad-seconds", "other-page", "other-json"],
)
def test_a_bad_answer_is_explained(
    status: int,
    body: str,
    code: int,
    said: str,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "body", body)
    assert main(["trace", "--url", url, "--out", str(tmp_path / "t.json")]) == code
    error = capsys.readouterr().err
    assert error.startswith("xgr trace: error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_where_nothing_listens_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["trace", "--url", f"http://127.0.0.1:{port}", "--out", str(tmp_path / "t.json")]) == 1
    assert "nothing listens" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["missing/t.json", "."], ids=["no-folder", "a-folder"])
def test_a_path_that_cannot_be_written_is_refused_first(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "--url", "http://127.0.0.1:1", "--out", str(tmp_path / out)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1"])
def test_what_is_no_url_is_refused(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--url", url, "--out", str(tmp_path / "t.json")]) == 2
    assert "--url" in capsys.readouterr().err
