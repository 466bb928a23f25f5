"""What a router has and we lack, asked for part by part: the file of a built catalog, or a long batch."""

from typing import BinaryIO

import xxhash

from xgr_runtime.catalog.file import MEMORY_NAME
from xgr_runtime.catalog.sealed import seal, unsealed
from xgr_runtime.wire.messages import CatalogAsk, CatalogPart, CatalogStep

PATIENCE = 2.0  # seconds for a part, until it is asked for again
REST = 0.1  # seconds, before it is asked for again where it came and is of no use
SHARE = 0.5  # of the time in which a part is on its way: links and loops have requests to carry, too


class Pull:
    """The bytes of one step, from any router that offers it: who comes back goes on where it was.

    They lie in memory that is sealed once they are whole.
    """

    def __init__(self, step: CatalogStep) -> None:
        """Raises OSError where no memory is left."""
        self.step = step
        self.memory: BinaryIO = unsealed(MEMORY_NAME)
        self.bytes = 0  # that are here
        self.problem = ""  # why they are of no use
        self._sum = xxhash.xxh3_64()
        self._asked: float | None = None
        self._next = 0.0  # when more may be asked for
        self.again = False  # the last part that was asked for did not come, or was of no use

    def is_for(self, step: CatalogStep) -> bool:
        """Whether these are the bytes of that step."""
        ours = self.step
        return (ours.version, ours.size, ours.digest) == (step.version, step.size, step.digest)

    @property
    def whole(self) -> bool:
        return self.bytes == self.step.size

    def ask(self, now: float) -> CatalogAsk | None:
        """What to ask for now, if anything."""
        if self.whole or self.problem or now < self._next:
            return None
        self.again = self._asked is not None
        self._asked, self._next = now, now + PATIENCE
        return CatalogAsk(self.step.version, self.bytes)

    def ask_anew(self) -> None:
        """Whoever was asked last is gone."""
        self._asked, self._next = None, 0.0

    def due(self, now: float) -> float:
        """Seconds until `ask` has something."""
        return max(0.0, self._next - now)

    def take(self, part: CatalogPart, now: float) -> bool:
        """Keep what came; False for what was not asked for, or is not as it was sent: that is asked anew."""
        if part.version != self.step.version or part.offset != self.bytes or self.whole:
            return False
        sound = xxhash.xxh3_64_intdigest(part.data) == part.checksum
        if not part.data or not sound or self.bytes + len(part.data) > self.step.size:
            self._next = now + REST  # its sender no longer has it, or the link broke it
            return False
        self.memory.write(part.data)
        self._sum.update(part.data)
        self.bytes += len(part.data)
        on_its_way = now - self._asked if self._asked is not None else 0.0
        self._asked = None
        self._next = now + min(PATIENCE, on_its_way * (1 / SHARE - 1))
        if self.whole:
            self._finish()
        return True

    def close(self) -> None:
        self.memory.close()

    def _finish(self) -> None:
        if self._sum.intdigest() != self.step.digest:
            self.problem = "its bytes are not those that the router offered"
        seal(self.memory)
