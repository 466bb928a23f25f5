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


def nothing() -> None:
    """What there is to do while a batch runs, unless somebody knows more."""


class PrefillEngine(Protocol):
    """Runs batches of prompts, one forward each."""

    model: ModelBackend
    pool: KvPool
    device: Device
    max_prompts: int | None
    """Of a batch; None: as many as there are tokens for."""

    prepares: bool
    """Whether the host has something to plan for a batch that it can do ahead of `run`."""

    def prepare(self, parts: Sequence[Part]) -> None:
        """Plan a batch that `run` may be asked for next, the same list; another may run meanwhile.

        It launches nothing, and what runs on the device does not notice. Where nothing is to be planned, it
        does nothing.
        """
        ...

    def run(
        self,
        parts: Sequence[Part],
        on_layer: Callable[[int], None],
        meanwhile: Callable[[], None] = nothing,
    ) -> NDArray[np.float32]:
        """Write the KV of every part into its pages; return its last token's hidden state, [B, hidden].

        `on_layer(layer)` is called as soon as a layer's KV of all parts is in the pages. `meanwhile()` is
        called once, by an engine that prepares, when the device has little left to do: it may call `prepare`.
        """
        ...

    def warm_up(self) -> None:
        """Pay all first-use costs; call it once, before the first batch."""
        ...
