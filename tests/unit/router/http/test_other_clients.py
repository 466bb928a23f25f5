"""Clients that people have, each with its own habits, get the answer that ours gets."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from live_http import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Server

QUESTION = {"input_ids": [3, 11], "sampling_params": {"beam_width": 20}}
JSON = ["--header", "Content-Type: application/json"]
CURL = {
    "plain": ["--data-binary", "@{body}"],
    "http-1.0": ["--http1.0", "--data-binary", "@{body}"],
    "expects-100": ["--header", "Expect: 100-continue", "--data-binary", "@{body}"],
    "chunked": ["--header", "Transfer-Encoding: chunked", "--data-binary", "@{body}"],
    "chunked-100": [
        "--header",
        "Expect: 100-continue",
        "--upload-file",
        "{body}",
        "--request",
        "POST",
    ],
    "packed-answer": ["--compressed", "--data-binary", "@{body}"],
    "packed-body": ["--header", "Content-Encoding: gzip", "--data-binary", "@{packed}"],
    "closing": ["--header", "Connection: close", "--data-binary", "@{body}"],
}
NODE = """
const body = require("fs").readFileSync(process.argv[2], "utf8");
const headers = {"content-type": "application/json"};
fetch(process.argv[1], {method: "POST", headers, body})
  .then((answer) => answer.text()).then((text) => process.stdout.write(text));
"""
JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.Path;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(given[0]))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(given[1]))).build();
        HttpResponse<String> answer =
            HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.print(answer.body());
    }
}
"""


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with serving(server.app) as live:
        yield f"http://127.0.0.1:{live.address[1]}/generate"


@pytest.fixture
def body(tmp_path: Path) -> Path:
    file = tmp_path / "body.json"
    file.write_text(json.dumps(QUESTION))
    return file


@pytest.fixture
def expected(server: Server) -> Any:
    return server.send("POST", "/generate", json=QUESTION).json()["meta_info"]["beam_results"]


def results(*command: str | Path) -> Any:
    """What a client printed: an answer."""
    name = str(command[0])
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["meta_info"]["beam_results"]


@pytest.mark.parametrize("habit", CURL)
def test_curl(url: str, body: Path, expected: Any, habit: str) -> None:
    packed = body.with_name("body.gz")
    packed.write_bytes(gzip.compress(body.read_bytes()))
    said = [part.format(body=body, packed=packed) for part in CURL[habit]]
    assert results("curl", "--silent", "--show-error", "--noproxy", "*", *JSON, *said, url) == expected


def test_node(url: str, body: Path, expected: Any) -> None:
    assert results("node", "-e", NODE, url, body) == expected


def test_java(url: str, body: Path, expected: Any) -> None:
    """It asks for HTTP/2 first, as an upgrade."""
    program = body.with_name("Ask.java")
    program.write_text(JAVA)
    assert results("java", program, url, body) == expected
