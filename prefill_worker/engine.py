"""Runs packed prompts through the model and keeps their KV in pages."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.kv import KvPool
from xgr_runtime.model.stages import PrefillStage
from xgr_runtime.pages import PageIds


class PrefillEngine:
    """The model and the pool; one forward per batch."""

    def __init__(self, model: ModelBackend, pool: KvPool) -> None:
        self.model = model
        self.pool = pool

    def run(
        self,
        prompts: Sequence[tuple[NDArray[np.int32], PageIds]],
        on_layer: Callable[[int], None],
    ) -> NDArray[np.float32]:
        """Write every prompt's KV into its pages; return the last hidden states [B, hidden].

        `on_layer(layer)` is called as soon as a layer's KV of all prompts is in the pages.
        """
        lengths = [len(tokens) for tokens, _ in prompts]
        ends = np.cumsum(lengths)
        spans = [(int(end) - n, n, pages) for end, n, (_, pages) in zip(ends, lengths, prompts, strict=True)]
        tokens = torch.from_numpy(np.concatenate([tokens for tokens, _ in prompts]).astype(np.int64))
        positions = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
        hidden = self.model.forward(tokens, positions, PrefillStage(self.pool, spans, on_layer))
        last = hidden[torch.from_numpy(ends - 1)]
        return last.float().numpy()

    def warm_up(self) -> None:
        """One small forward, so that no request pays for first-use costs."""
        pages = np.arange(1, dtype=np.int32)
        self.run([(np.zeros(1, np.int32), pages)], lambda layer: None)
