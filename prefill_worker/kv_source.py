"""Prompt KV in this worker's pool, as a transfer reads it."""

from dataclasses import dataclass

from xgr_runtime.handover.protocol import Chunk, PromptPages
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.device.device import losing_the_device
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.transport import Frame


@dataclass(frozen=True)
class PooledPrompt:
    """The prompt that `pages` of the pool hold. See `KvSource`."""

    pool: KvPool
    pages: PageIds
    shared: PromptPages | None  # the same pages, if decode workers may map the pool

    def read(self, chunk: Chunk) -> tuple[Frame, Frame]:
        """See `KvSource.read`. Raises DeviceLost."""
        with losing_the_device():
            return self.pool.read_bytes(
                chunk.first_layer, chunk.last_layer, self.pages, chunk.start, chunk.count
            )
