"""GET requests to a Kubernetes API, by the standard library's client: a connection each, certificate checked.

What is asked is little, a list and a watch a minute: no reason for the package `kubernetes`, which generates
a class for every object that there is.
"""

import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from urllib.parse import urlencode, urlsplit

import msgspec

from xgr_runtime.discovery.kubernetes.account import Account
from xgr_runtime.errors import ConfigError, XgrError
from xgr_runtime.transport.addresses import is_loopback

CONNECT_SECONDS = 10.0
MOST_REASON = 4096  # bytes of an error's body that are read
GONE = 410  # the cluster remembers no more what came after the version that we name
# After 10 s without a packet the peer is asked, and 15 s later it is lost: a pulled cable says nothing.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class ApiError(XgrError):
    """The API gave no answer that could be used; `status` is that of HTTP, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _Status(msgspec.Struct):
    """What the API says of an error."""

    message: str = ""


class Api:
    """The API of one cluster, asked as one service account."""

    def __init__(self, url: str, account: Account) -> None:
        """Raises `ConfigError` for what is no address of an API."""
        self.account = account
        self._url = url
        self._host, self._port, self._encrypted = _parts(url)

    def __str__(self) -> str:
        return self._url

    @contextmanager
    def get(
        self, path: str, query: Mapping[str, object], silence: float
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer, with status 200, to be read in the block.

        `silence`: seconds without a byte after which reading raises. Raises `ApiError`, also for what goes
        wrong with the connection in the block, and `ConfigError` for a token or certificate that is missing.
        """
        headers = {"Authorization": f"Bearer {self.account.token()}", "Accept": "application/json"}
        try:
            with closing(self._connected(silence)) as connection:
                connection.request("GET", f"{path}?{urlencode(query)}", headers=headers)
                with connection.getresponse() as response:
                    if response.status != http.HTTPStatus.OK:
                        raise _refused(response)
                    yield response
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(_reason(error)) from None

    def _connected(self, silence: float) -> http.client.HTTPConnection:
        where = (self._host, self._port)
        connection = http.client.HTTPConnection(*where, timeout=CONNECT_SECONDS)
        if self._encrypted:
            context = _trusting(self.account)
            connection = http.client.HTTPSConnection(*where, timeout=CONNECT_SECONDS, context=context)
        connection.connect()
        stream = connection.sock
        stream.settimeout(silence)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        return connection


def _parts(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is encrypted. A token travels in the clear on loopback alone."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    except ValueError:
        good, host, port = False, "", None
    if not good or not host or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError(
            f"--kubernetes-api is {url[:200]!r}: give https://HOST:PORT, as in https://kubernetes.default.svc"
        )
    return host, port or (443 if parts.scheme == "https" else 80), parts.scheme == "https"


def _trusting(account: Account) -> ssl.SSLContext:
    """Trust in the cluster's own authority, and no other. Raises `ConfigError`."""
    try:
        return ssl.create_default_context(cafile=str(account.authority))
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or error
        raise ConfigError(
            f"{account.authority} cannot be used ({reason}): put the cluster's certificate there"
        ) from None


def _refused(response: http.client.HTTPResponse) -> ApiError:
    """What an answer with another status than 200 says."""
    body = response.read(MOST_REASON)
    try:
        said = msgspec.json.decode(body, type=_Status).message
    except (msgspec.MsgspecError, ValueError):
        said = ""
    remedy = {
        401: ": is its token that of this cluster?",
        403: ": let the service account get, list and watch pods",
    }.get(response.status, "")
    said = " ".join(said.split())[:300] or response.reason[:100]
    return ApiError(f"the API answered {response.status} ({said}){remedy}", response.status)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the API was silent for too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the API's certificate is not to be trusted ({error.verify_message})"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"the connection to the API failed ({' '.join(str(text).split())[:200]})"
