"""A small Kubernetes API of pods: it lists, watches, forgets, refuses, dribbles and hangs up."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from ports import free_port

NAMESPACE = "shop"
TOKEN = "first-token"


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    query: Mapping[str, str]
    token: str

    @property
    def watch(self) -> bool:
        return self.query.get("watch") == "true"


def pod(name: str, role: str, port: int, ip: str = "127.0.0.1", **changed: Any) -> dict[str, Any]:
    """A pod as the API shows it, with more than anybody reads. `changed`: see below."""
    labels = {"app.kubernetes.io/component": role, "app.kubernetes.io/instance": NAMESPACE}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-of-{name}",
        "labels": changed.get("labels", labels),
        "annotations": {"other": "x"} | ({"xgr-runtime/key": changed["key"]} if "key" in changed else {}),
        "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": True}],
    }
    if changed.get("leaving"):
        metadata["deletionTimestamp"] = "2026-12-01T00:00:00Z"
    ports = [{"name": "control", "containerPort": port, "protocol": "TCP"}]
    containers = [{"name": "side"}, {"name": role, "image": "i", "ports": changed.get("ports", ports)}]
    status: dict[str, Any] = {"phase": changed.get("phase", "Running"), "conditions": [{"type": "Ready"}]}
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": containers, "nodeName": "n"},
        "status": status | ({"podIP": ip} if ip else {}),
    }


@dataclass
class KubernetesApi(AbstractContextManager["KubernetesApi"]):
    """Served on a port of loopback, over TLS with its own authority; `folder` is a service account's."""

    folder: Path
    authority: Path  # as `make_authority` made it
    page: int = 500  # pods of an answer, at most
    piece: int = 1 << 20  # bytes of a chunk
    pause: float = 0.0  # seconds between chunks
    silent: bool = False  # watches say nothing at all
    refusal: int = 0  # status of every answer, if not 0
    broken: bytes = b""  # sent as the next line of each watch
    asked: list[Asked] = field(default_factory=list)
    token: str = TOKEN
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.version = 100
        self._forgotten = 0  # versions up to which no watch may begin
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._changed = threading.Condition()
        self._watches: list[socket.socket] = []
        self._epoch = 0  # watches of an earlier one end
        self._server: ThreadingHTTPServer | None = None
        self.folder.mkdir()
        shutil.copy(self.authority / "ca.crt", self.folder)
        (self.folder / "token").write_text(f"{self.token}\n")
        (self.folder / "namespace").write_text(NAMESPACE)

    def __enter__(self) -> KubernetesApi:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def lists(self) -> list[Asked]:
        return [asked for asked in self.asked if not asked.watch]

    @property
    def watches(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.watch]

    # --- what happens in the cluster ---

    def put(self, new: dict[str, Any]) -> None:
        """A pod is there, or another than before."""
        name = new["metadata"]["name"]
        kind = "MODIFIED" if name in self.pods else "ADDED"
        self._happened(kind, new)

    def remove(self, name: str) -> None:
        self._happened("DELETED", self.pods[name])

    def bookmark(self) -> None:
        """Tell watches how far they are, as happens where nothing else does."""
        with self._changed:
            self.version += 1
            bookmark = {"kind": "Pod", "metadata": {"resourceVersion": str(self.version)}}
            self._events.append((self.version, {"type": "BOOKMARK", "object": bookmark}))
            self._changed.notify_all()

    def forget(self) -> None:
        """Remember nothing of what was up to now: who watches from there gets 410."""
        with self._changed:
            self.version += 1
            self._forgotten = self.version
            self._events.clear()

    def hang_up(self) -> None:
        """End all watches as a crash does, in the middle of what they are told."""
        with self._changed:
            streams, self._watches = self._watches, []
        for stream in streams:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def end_watches(self) -> None:
        """As the server does it after `timeoutSeconds`: a last chunk, and no error."""
        with self._changed:
            self._epoch += 1
            self._changed.notify_all()

    def down(self) -> None:
        """Nobody listens any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.end_watches()
        self.hang_up()

    def up(self) -> None:
        """Listen, on the same port as before."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority / "server.crt", self.authority / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port, self._server = server.server_address[1], server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _happened(self, kind: str, new: dict[str, Any]) -> None:
        with self._changed:
            self.version += 1
            new = json.loads(json.dumps(new))
            new["metadata"]["resourceVersion"] = str(self.version)
            name = new["metadata"]["name"]
            self.pods = {key: value for key, value in self.pods.items() if key != name}
            if kind != "DELETED":
                self.pods[name] = new
            self._events.append((self.version, {"type": kind, "object": new}))
            self._changed.notify_all()

    # --- what is answered ---

    def listed(self, query: Mapping[str, str]) -> dict[str, Any]:
        with self._changed:
            first, limit = int(query.get("continue", 0)), min(self.page, int(query.get("limit", self.page)))
            items = list(self.pods.values())
            metadata = {"resourceVersion": str(self.version)}
            if first + limit < len(items):
                metadata["continue"] = str(first + limit)
            return {"kind": "PodList", "metadata": metadata, "items": items[first : first + limit]}

    def watched(self, query: Mapping[str, str], stream: socket.socket) -> Iterator[dict[str, Any] | bytes]:
        """Lines of a watch, as they come to be; ends when it should."""
        seen, epoch = int(query["resourceVersion"]), self._epoch
        end = time.monotonic() + float(query["timeoutSeconds"])
        with self._changed:
            self._watches.append(stream)
        if self.broken:
            yield self.broken
        while self._epoch == epoch and time.monotonic() < end:
            if seen < self._forgotten:
                yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}
                return
            with self._changed:
                news = [(version, event) for version, event in self._events if version > seen]
                if not news:
                    self._changed.wait(0.05)
            for version, event in news:
                yield event
                seen = version


def _handler(api: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5.0

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            asked = Asked(parts.path, dict(parse_qsl(parts.query)), token)
            api.asked.append(asked)
            if status := api.refusal or (0 if token == api.token else 401):
                self._send(status, {"kind": "Status", "message": f"no {status}"})
            elif parts.path != f"/api/v1/namespaces/{NAMESPACE}/pods":
                self._send(404, {"kind": "Status", "message": "not found"})
            elif not asked.watch:
                self._send(200, api.listed(asked.query))
            else:
                self._watch(asked.query)

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def _watch(self, query: Mapping[str, str]) -> None:
            while api.silent and api._server is not None:
                time.sleep(0.01)
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in api.watched(query, self.connection):
                line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
                for start in range(0, len(line), api.piece):
                    piece = line[start : start + api.piece]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    time.sleep(api.pause)
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def handle(self) -> None:
            with suppress(OSError, ssl.SSLError):  # who was hung up on
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def make_authority(folder: Path) -> None:
    """`ca.crt`, and a certificate of it for localhost. By openssl, else a skip."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates of this test, is not on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    key: list[str | Path] = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    _openssl("req", "-x509", *key, "-keyout", folder / "ca.key", "-out", folder / "ca.crt", "-subj", "/CN=a")
    names: list[str | Path] = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    signed: list[str | Path] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key"]
    own: list[str | Path] = ["-keyout", folder / "server.key", "-out", folder / "server.crt"]
    _openssl("req", "-x509", *key, *own, *names, *signed)


def _openssl(*argv: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, argv)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
