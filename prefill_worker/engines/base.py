"""What runs prompts, as its worker sees it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.device.device import Device
from xgr_runtime.model.memory.kv_pool import KvPool


class Part(NamedTuple):
    """The next tokens of a prompt, [n]; its pages hold the KV of the `start` tokens before them."""

    tokens: NDArray[np.int32]
    pages: PageIds
    start: int = 0


class PrefillEngine(Protocol):
    """Runs batches of prompts, one forward each."""

    model: ModelBackend
    pool: KvPool
    device: Device
    max_prompts: int | None
    """Of a batch; None: as many as there are tokens for."""

    def run(self, parts: Sequence[Part], on_layer: Callable[[int], None]) -> NDArray[np.float32]:
        """Write the KV of every part into its pages; return its last token's hidden state, [B, hidden].

        `on_layer(layer)` is called as soon as a layer's KV of all parts is in the pages.
        """
        ...

    def warm_up(self) -> None:
        """Pay all first-use costs; call it once, before the first batch."""
        ...
