"""Which addresses are safe to listen on and to connect to: those that nobody else reaches."""

import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from xgr_runtime.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_HOST = re.compile(r"\*|[A-Za-z0-9.:_-]+")  # any interface, an address, a name

SOCKET_PATH = 107
"""Bytes that the path of a socket may have, on Linux."""


def check_address(address: str, keyed: bool = False) -> None:
    """Refuse what would let others in. Raises `ConfigError`.

    A folder of our own with mode 0700 guards `ipc://`; `tcp://` leaves this machine only with keys.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        _check_folder(Path(rest).parent, address)
    elif scheme == "tcp":
        host, _, port = rest.rpartition(":")
        _check_host(host, address, keyed)
        if not (port == "*" or (_PORT.fullmatch(port) and int(port) <= 65535)):
            raise ConfigError(f"{address}: it ends with a port up to 65535, as in tcp://127.0.0.1:7000")
    else:
        raise ConfigError(f"{address}: an address starts with ipc:// or tcp://")


def split_peer(address: str) -> tuple[str, str]:
    """`tcp://HOST:PORT#NAME`: where to connect, and under which name the key of whoever listens is known.

    The name is empty where none is given; a socket in a folder has none.
    """
    if not address.startswith("tcp://"):
        return address, ""
    endpoint, _, name = address.partition("#")
    return endpoint, name


def is_guarded(address: str) -> bool:
    """Whether the folder around this socket keeps other users out, so that it needs no keys."""
    return address.startswith("ipc://")


def is_wildcard(address: str) -> bool:
    """Whether one can listen on this address but not connect to it."""
    if is_guarded(address):
        return False
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host in ("*", "0.0.0.0", "[::]") or port in ("*", "0")


def is_url(address: str) -> bool:
    """Whether an address is that of an HTTP server, not of a link."""
    return address.startswith(("http://", "https://"))


def check_url(url: str, setting: str) -> None:
    """Refuse a server that is not on this machine. Raises `ConfigError` that names the setting."""
    try:
        parts = urlsplit(url)
        local = parts.scheme == "http" and is_loopback(parts.hostname or "") and parts.port is not None
    except ValueError:
        local = False
    if not local or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError(
            f"{setting} {url}: a server's address is http://127.0.0.1:PORT, as its KV does not leave this "
            "machine"
        )


def check_host_names(names: Sequence[str]) -> None:
    """Raises `ConfigError` for what is no name of a host, as `--allowed-hosts` takes it."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--allowed-hosts: {name[:80]!r} is no host name: give it without scheme and port"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_host(host: str, address: str, keyed: bool) -> None:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if is_loopback(host):
        return
    if not keyed:
        raise ConfigError(
            f"{address}: other machines reach it: give --curve-key and --curve-allow (see `xgr keys new`), "
            "or use ipc:// or tcp://127.0.0.1:PORT"
        )
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{address}: {host or 'nothing'} is no host, give an address or a name")


def _check_folder(folder: Path, address: str) -> None:
    if len(os.fsencode(address.removeprefix("ipc://"))) > SOCKET_PATH:
        raise ConfigError(
            f"{address}: longer than the {SOCKET_PATH} bytes of a socket path, use a shorter folder"
        )
    try:
        found = folder.stat()
    except OSError as error:
        raise ConfigError(f"{address}: {folder} cannot be used ({error.strerror}): make the folder") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{address}: {folder} is no folder: name another")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{address}: the folder {folder} is somebody else's: use one of your own")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{address}: others may enter {folder}, run: chmod 700 {folder}")
