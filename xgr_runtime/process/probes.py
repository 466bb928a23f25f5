"""A port on which a process says how it is, for whoever starts and watches it: a word over HTTP, no more.

`/liveness` is 200 while the loop takes its turns, `/readiness` while the process does its work: from the
first turn to the first word of a stop. Both need no key and tell nothing of the deployment.
"""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, Literal, Protocol

from xgr_runtime.errors import ConfigError

State = Literal["starting", "ready", "stopping", "stuck"]

MOST_AT_ONCE = 16  # connections; more are closed
PATIENCE = 2.0  # seconds that one may take for a line


class Stateful(Protocol):
    """A process that knows how it is."""

    @property
    def state(self) -> State: ...


def answer_probes(address: str, process: Stateful) -> Callable[[], None]:
    """Listen on HOST:PORT, in threads of their own; what ends that. Raises `ConfigError`."""
    host, port = _split(address)
    try:
        server = _ProbeServer((host, port), _handler(process))
    except OSError as error:
        raise ConfigError(
            f"--probe-address is {address}: cannot listen there ({error.strerror}): choose another"
        ) from None
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close


def _split(address: str) -> tuple[str, int]:
    """Raises `ConfigError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"--probe-address is {address[:100]!r}: give HOST:PORT, as in 0.0.0.0:7002")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _ProbeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._places = threading.Semaphore(MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up is no news."""


def _handler(process: Stateful) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE

        def do_GET(self) -> None:
            state = process.state
            good = {"/liveness": state != "stuck", "/readiness": state == "ready"}.get(self.path)
            body = f"{state}\n".encode() if good is not None else b""
            status = HTTPStatus.NOT_FOUND if good is None else HTTPStatus.OK if good else _UNAVAILABLE
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return "xgr"

        def log_message(self, format: str, *args: Any) -> None:
            """A probe a second is not worth a line."""

    return Handler


_UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE
