"""OPENs that overtook their router's request: kept for it, so many and so long as is reasonable."""

from typing import NamedTuple

from xgr_runtime.wire.messages import AttemptId, Open

MOST = 1024
MOST_BYTES = 64 << 20  # of the pages that they name


class EarlyOpen(NamedTuple):
    """An OPEN without a request."""

    peer: bytes
    message: Open
    arrived: float

    @property
    def size(self) -> int:
        """Bytes of the pages that it names."""
        return len(self.message.pages) + len(self.message.generations)


class EarlyOpens:
    """Those whose request may still come."""

    def __init__(self) -> None:
        self._opens: dict[AttemptId, EarlyOpen] = {}

    def __len__(self) -> int:
        return len(self._opens)

    def __contains__(self, id: AttemptId) -> bool:
        return id in self._opens

    def add(self, early: EarlyOpen) -> bool:
        """False where there is no room for it."""
        named = sum(other.size for other in self._opens.values())
        if len(self._opens) >= MOST or named + early.size > MOST_BYTES:
            return False
        self._opens[early.message.id] = early
        return True

    def pop(self, id: AttemptId) -> EarlyOpen | None:
        """Take out the OPEN of an attempt, whose request is here or wanted no more."""
        return self._opens.pop(id, None)

    def expire(self, before: float) -> None:
        """Drop those that arrived before that moment: their requests never came."""
        self._opens = {id: early for id, early in self._opens.items() if early.arrived >= before}
