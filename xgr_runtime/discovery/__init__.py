"""Where the router learns of workers: a source names them all each time that it is looked at.

A source that cannot be read, or says what cannot be meant, changes nothing: who was named last stays.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from xgr_runtime.errors import ConfigError
from xgr_runtime.wire.messages import Role


class WorkerAddress(NamedTuple):
    """One worker: what it does, and where the router talks to it."""

    role: Role
    address: str  # ipc:// or tcp:// of its control socket, or the URL of an SGLang server


class Source(Protocol):
    """One place that names workers."""

    def look(self) -> Sequence[WorkerAddress]:
        """All that it names now. Raises `ConfigError` that names the source and what to change."""


def check_twice(workers: Sequence[WorkerAddress], source: str) -> None:
    """Raises `ConfigError` where an address is named more than once."""
    addresses = [worker.address for worker in workers]
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise ConfigError(f"{source}: {address} is named twice: a worker has one role and one address")
