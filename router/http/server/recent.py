"""What one HTTP request leaves behind, and the last of those that ended."""

import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from xgr_runtime.wire.answers import EndedRequest
from xgr_runtime.wire.messages import Timing

KEPT = 200


@dataclass
class AccessRecord:
    """What one HTTP request leaves in log and metrics; handlers fill in what they learn."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrival: float = field(default_factory=time.monotonic)
    rid: str = ""
    prompt_tokens: int = 0
    width: int = 0
    wanted: int = 0
    results: int = 0
    status: int = 0
    attempts: int = 0
    cached_tokens: int = 0
    timing: Timing | None = None

    @property
    def request_id(self) -> str:
        return self.rid or self.id


class Recent:
    """Requests of /generate that ended, as many as are kept."""

    def __init__(self) -> None:
        self._ended: deque[tuple[AccessRecord, float, float]] = deque(maxlen=KEPT)

    def add(self, record: AccessRecord, seconds: float) -> None:
        """It ended now, after `seconds`."""
        self._ended.append((record, time.time(), seconds))

    def last(self, most: int) -> list[EndedRequest]:
        """The last to end first."""
        return [
            EndedRequest(
                rid=record.request_id,
                ended=ended,
                seconds=seconds,
                status=record.status,
                prompt_tokens=record.prompt_tokens,
                beam_width=record.width,
                results=record.results,
                attempts=record.attempts,
                cached_tokens=record.cached_tokens,
                timing=record.timing,
            )
            for record, ended, seconds in islice(reversed(self._ended), most)
        ]
