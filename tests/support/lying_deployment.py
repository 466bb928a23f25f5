"""A deployment that says whatever a test wants, and `xgr bench` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xgr_runtime.catalog import Catalog

Beams = list[tuple[list[int], float]]
KEY = "secret"


@dataclass
class Deployment:
    """Answers at once, with `width` real SIDs unless `answer` says otherwise."""

    catalog: Catalog
    url: str = ""
    version: str = ""  # of the catalog that it claims to serve
    key: str = ""  # that it wants
    answer: Callable[[int, list[int]], Beams] | None = None
    status: int = 200
    workers: list[dict[str, Any]] = field(default_factory=list)  # as /workers lists them
    timing: dict[str, float] | None = None  # of every answer, seconds
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    def real(self, width: int) -> Beams:
        """The first SIDs of the catalog."""
        return [(sid, -float(rank)) for rank, sid in enumerate(self.catalog.sids[:width].tolist())]

    def said(self, method: str, path: str, body: bytes, key: str) -> tuple[int, Any]:
        if self.key and key != f"Bearer {self.key}":
            return (403 if key else 401), {"error": {"message": "no"}}
        if path == "/server_info":
            return 200, SERVER_INFO
        if path == "/workers?fresh=true":
            return 200, {"workers": self.workers}
        if path == "/model_info":
            return 200, MODEL_INFO | {"catalog_version": self.version or self.catalog.version}
        return self.generate(json.loads(body)) if (method, path) == ("POST", "/generate") else (404, {})

    def generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.bodies.append(body)
        self.asked.set()
        if self.status != 200:
            detail = {"message": "too much", "type": "overloaded_error", "param": None, "code": "overloaded"}
            return self.status, {"error": detail, "request_id": "1", "retryable": True}
        width = body["sampling_params"]["beam_width"]
        beams = self.answer(width, body["input_ids"]) if self.answer else self.real(width)
        results = [{"output_ids": sid, "meta_info": {"cumulative_logprob": score}} for sid, score in beams]
        meta = {"beam_results": results, "prompt_tokens": len(body["input_ids"]), "cached_tokens": 3}
        meta |= {"timing": self.timing} if self.timing else {}
        return 200, {"rid": "1", "meta_info": meta}


SERVER_INFO = {
    "version": "1",
    "model_path": "tiny",
    "served_model_name": "tiny",
    "max_beam_width": 64,
    "default_beam_width": 50,
    "max_prompt_tokens": 100,
    "max_body_bytes": 1 << 20,
    "timeout_ms": 30000,
    "ready": True,
    "draining": False,
    "live_requests": 0,
}
MODEL_INFO = {
    "model_path": "tiny",
    "served_model_name": "tiny",
    "is_generation": True,
    "vocab_size": 26,
    "depth": 3,
    "catalog_items": 120,
    "catalog_leaves": 120,
}


@contextmanager
def listening(catalog: Catalog) -> Iterator[Deployment]:
    """Such a deployment, on a port of its own."""
    made = Deployment(catalog)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            key = self.headers.get("authorization", "")
            status, answer = made.said(self.command, self.path, self.rfile.read(length), key)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join(10)


@dataclass(frozen=True)
class Done:
    """A command that ended; `line` is the JSON line, where there is one."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> dict[str, Any]:
        last: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return last


def hear_ctrl_c() -> None:
    """As in a terminal: what a script runs in its background is born deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*flags: str, **environment: str) -> subprocess.Popen[str]:
    """`xgr bench` with these flags."""
    return subprocess.Popen(
        [sys.executable, "-m", "xgr_runtime.cli", "bench", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XGR_API_KEY": "", **environment},
        preexec_fn=hear_ctrl_c,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


Bench = Callable[..., Done]
