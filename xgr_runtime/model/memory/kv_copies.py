"""Prompt KV on its way into our pool: from frames, or out of another worker's pool.

On a CPU a copy is done when the call returns. On a GPU copies have a queue of their own, beside the one of
the model's work, and all that writes received prompts goes through it: so a late copy never lands on pages
that have another owner by then.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.device.device import CudaEvent, Event, PassedEvent
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.transport import Frame
from xgr_runtime.wire.messages import KvChunk, KvReady


class Copies:
    """The queue of copies into one pool; each gives the mark behind it."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        device = pool.k.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def write(self, m: KvChunk, pages: PageIds, keys: Frame, values: Frame) -> Event:
        """A chunk's frames into our `pages`. Raises ValueError for frames of another size."""
        with self._queued():
            self._pool.write_bytes(m.first_layer, m.last_layer, pages, m.start, m.count, keys, values)
            return self._mark()

    def pull(self, m: KvReady, source: KvPool, theirs: PageIds, ours: PageIds) -> Event:
        """What `m` names, from pages `theirs` of another worker's pool into ours."""
        with self._queued():
            self._pool.copy_from(source, m.first_layer, m.last_layer, theirs, ours, m.start, m.count)
            return self._mark()

    def _queued(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _mark(self) -> Event:
        if self._stream is None:
            return PassedEvent()
        event = CudaEvent()
        event.record()
        return event
