"""The engine of a CPU: packed prompts, or parts of them, in one forward."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from prefill_worker.engines.base import Part, nothing
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.device.device import Device, HostDevice
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import PrefillStage


class CpuPrefillEngine:
    """The engine of a CPU: the model and the pool."""

    max_prompts: int | None = None
    prepares = False

    def __init__(self, model: ModelBackend, pool: KvPool) -> None:
        self.model = model
        self.pool = pool
        self.device: Device = HostDevice()

    def prepare(self, parts: Sequence[Part]) -> None:
        """See `PrefillEngine`."""

    def run(
        self,
        parts: Sequence[Part],
        on_layer: Callable[[int], None],
        meanwhile: Callable[[], None] = nothing,
    ) -> NDArray[np.float32]:
        """See `PrefillEngine`. This thread computes, so there is no meanwhile."""
        counts = [len(part.tokens) for part in parts]
        ends = np.cumsum(counts)
        spans = [(int(end) - n, n, part.pages) for end, n, part in zip(ends, counts, parts, strict=True)]
        last_layer = self.model.identity.layers - 1 if self.model.prunes else None
        starts = [part.start for part in parts]
        stage = PrefillStage(self.pool, spans, on_layer, starts, last_rows_of=last_layer)
        tokens = torch.from_numpy(np.concatenate([part.tokens for part in parts]).astype(np.int64))
        positions = [np.arange(part.start, part.start + n) for part, n in zip(parts, counts, strict=True)]
        where, last = torch.from_numpy(np.concatenate(positions)), torch.from_numpy(ends - 1)
        if self.model.prunes:
            hidden = self.model.forward(tokens, where, stage, keep=last)
        else:
            hidden = self.model.forward(tokens, where, stage)[last]
        return hidden.float().numpy()

    def warm_up(self) -> None:
        """A small forward, and one behind it, so that no request pays for first-use costs."""
        pages, token = np.arange(1, dtype=np.int32), np.zeros(1, np.int32)
        for start in range(min(2, self.pool.page_size)):
            self.run([Part(token, pages, start)], lambda layer: None)
