"""CURVE on sockets, and the doorkeeper that lets in the listed keys alone.

ZeroMQ asks for each new connection whether its key may come in (ZAP, RFC 27), at one fixed inner address per
context. While nobody answers there, libzmq would let in everybody who knows the server's public key. So the
doorkeeper is bound before the first socket that needs it, and sockets insist that there is one.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils import z85

from xgr_runtime.errors import ConfigError
from xgr_runtime.transport.addresses import check_address, is_guarded, is_wildcard, split_peer
from xgr_runtime.transport.keyring import Keyring

log = logging.getLogger(__name__)

_ZAP = "inproc://zeromq.zap.01"
_WELCOME, _NOT_NOW = b"200", b"300"  # a client that is told 400 never tries again, listed or not
_QUIET = 10.0  # seconds between two lines about peers who are not listed


def new_key_pair() -> tuple[str, str]:
    """Public and secret key. Raises `ConfigError`."""
    _need_curve()
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_key(secret: str) -> str:
    """That belongs to a secret key. Raises `ConfigError`."""
    _need_curve()
    return zmq.curve_public(secret.encode()).decode()


def check_listener(address: str, keys: Keyring | None) -> None:
    """Whether one may listen there. Raises `ConfigError`."""
    if split_peer(address)[1]:
        raise ConfigError(f"{address}: who listens has its name in --curve-key, leave out #NAME")
    check_address(address, keys is not None)


def check_link(address: str, keys: Keyring | None) -> str:
    """What to give ZeroMQ to connect to. Raises `ConfigError`, also for a peer that is not listed."""
    endpoint, peer = split_peer(address)
    check_address(endpoint, keys is not None)
    if keys is None:
        if peer:
            raise ConfigError(f"{address}: its key is {peer}'s: give --curve-key and --curve-allow")
    elif not is_guarded(endpoint):
        if not peer:
            raise ConfigError(f"{address}: say whose it is, by its name in --curve-allow: {address}#NAME")
        keys.key_of(peer)
    return endpoint


def told_address(address: str, keys: Keyring | None) -> str:
    """Our address as others are told it: with our key's name. Raises `ConfigError` for a wildcard."""
    endpoint, name = split_peer(address)
    check_address(endpoint, keys is not None)
    if is_wildcard(endpoint):
        raise ConfigError(f"nobody can connect to {address}: give --advertise-data-address")
    return address if name or keys is None or is_guarded(address) else f"{address}#{keys.name}"


def guard_listener(socket: zmq.Socket[Any], address: str, keys: Keyring | None) -> None:
    """Before it is bound to a checked address: it lets in all that `keys` lists, and nobody else."""
    if keys is None or is_guarded(address):
        return
    _own(socket, keys)
    socket.setsockopt(zmq.ZAP_DOMAIN, _doorkeeper.admit(keys.allowed))
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.curve_server = True


def guard_link(socket: zmq.Socket[Any], address: str, keys: Keyring | None) -> None:
    """Before it is connected to a checked address: it talks to the process that is named there alone."""
    if keys is None or is_guarded(address):
        return
    _own(socket, keys)
    socket.curve_serverkey = keys.key_of(split_peer(address)[1]).encode()


def _own(socket: zmq.Socket[Any], keys: Keyring) -> None:
    socket.curve_publickey = public_key(keys.secret).encode()
    socket.curve_secretkey = keys.secret.encode()


def _need_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("this build of libzmq has no CURVE: use the wheels of pyzmq, or ipc:// addresses")


class _Doorkeeper:
    """Answers ZeroMQ's questions in a thread of its own, from the first admission to the process's end.

    Each allow list is a domain, which its sockets name when they ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: dict[bytes, dict[bytes, str]] = {}  # domain -> public key, 32 bytes -> name
        self._open = False
        self._told = -_QUIET

    def admit(self, allowed: Mapping[str, str]) -> bytes:
        """The domain in which these public keys may come in."""
        names = {z85.decode(key): name for name, key in allowed.items()}
        with self._lock:
            if not self._open:
                self._bind()
            domain = f"xgr-{len(self._lists)}".encode()
            self._lists[domain] = names
        return domain

    def _bind(self) -> None:
        questions: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
        questions.bind(_ZAP)
        threading.Thread(target=self._answer_all, args=(questions,), name="doorkeeper", daemon=True).start()
        self._open = True

    def _answer_all(self, questions: zmq.Socket[bytes]) -> None:
        while True:
            try:
                questions.send_multipart(self._answer(questions.recv_multipart()))
            except zmq.ContextTerminated:
                questions.close(linger=0)
                return

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """version, request id, status, text, user, metadata.

        The question: version, request id, domain, address, identity, mechanism, credentials.
        """
        version, request, domain, address, _, mechanism, *credentials = question
        key = credentials[0] if mechanism == b"CURVE" and credentials else b""
        name = self._lists.get(domain, {}).get(key)
        if name is None:
            self._tell(address, key)
            return [version, request, _NOT_NOW, b"not listed", b"", b""]
        return [version, request, _WELCOME, b"", name.encode(), b""]

    def _tell(self, address: bytes, key: bytes) -> None:
        """Peers may come by the thousand: one line says enough."""
        now = time.monotonic()
        if now - self._told < _QUIET:
            return
        self._told = now
        shown = z85.encode(key).decode() if len(key) == 32 else "none"
        where = address.decode("ascii", "replace")
        log.warning("refused %s: its public key %s is not in the file of --curve-allow", where, shown)


_doorkeeper = _Doorkeeper()
