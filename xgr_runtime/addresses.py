"""Which addresses are safe to listen on and to connect to: those that no stranger reaches."""

import ipaddress
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

from xgr_runtime.errors import ConfigError


def check_address(address: str) -> None:
    """Refuse what would let strangers in. Raises `ConfigError`.

    A folder of our own with mode 0700 guards `ipc://`; `tcp://` stays on this machine until links have keys.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "ipc":
        _check_folder(Path(rest).parent, address)
    elif scheme == "tcp":
        port = rest.rpartition(":")[2]
        if not is_guarded(address) or not (port == "*" or port.isdecimal()):
            raise ConfigError(f"{address}: links are not encrypted, use ipc:// or tcp://127.0.0.1:PORT")
    else:
        raise ConfigError(f"{address}: an address starts with ipc:// or tcp://")


def is_guarded(address: str) -> bool:
    """Whether only this machine reaches a link's address: `ipc://`, or `tcp://` on loopback."""
    scheme, _, rest = address.partition("://")
    host = rest.rpartition(":")[0]
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return scheme == "ipc" or (scheme == "tcp" and is_loopback(host))


def is_url(address: str) -> bool:
    """Whether an address is that of an HTTP server, not of a link."""
    return address.startswith(("http://", "https://"))


def check_url(url: str) -> None:
    """Refuse a server that is not on this machine. Raises `ConfigError`."""
    parts = urlsplit(url)
    try:
        local = parts.scheme == "http" and is_loopback(parts.hostname or "") and parts.port is not None
    except ValueError:
        local = False
    if not local or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError(
            f"{url}: a server's address is http://127.0.0.1:PORT, its KV does not leave this machine"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_folder(folder: Path, address: str) -> None:
    if len(address) > 100:
        raise ConfigError(f"{address}: longer than a socket path may be, use a shorter folder")
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
