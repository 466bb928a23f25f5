"""What runs searches, as its worker sees it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from decode_worker.search import Search
from xgr_kernels.trie import LeafFilter, Trie
from xgr_runtime.catalog import CatalogView
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.scheduling.cost_model import CostModel, Tried


class DecodeEngine(Protocol):
    """Runs searches to their ends. A launch is one level on a CPU, and all levels of a cohort on a GPU."""

    pool: KvPool
    tail_tokens: int
    counters: dict[str, float]
    """Totals since start, by name."""

    costs: CostModel
    """What its steps cost, as far as it knows."""

    @property
    def row_budget(self) -> int:
        """Beams of all searches that may be in the engine's hands or wait for it."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a launch has not ended yet, or was not collected."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it takes a launch now."""
        ...

    def choose(self, waiting: Sequence[Search]) -> list[Search]:
        """Those of the searches, the most urgent first, that the next launch takes; at least one."""
        ...

    def prepare(self, searches: Sequence[Search]) -> None:
        """Work out on the host what a launch of just these needs, if that is anything; it may never come.

        Call it when `ready`. It launches nothing, and what runs on the device does not notice.
        """
        ...

    def launch(self, searches: Sequence[Search], on_layer: Callable[[int], None] | None = None) -> None:
        """Run, or begin to run. `on_layer` is called now and then: a long launch need not make anyone deaf.

        The searches are `IN_FLIGHT` until the launch is over, then `OVER`, or `SEARCH` if levels are left.
        A launch that raises leaves none of them in flight. Raises DeviceLost if nothing can run here again.
        """
        ...

    def collect(self) -> list[Search]:
        """The searches that are over and were not collected before. Never waits. Raises DeviceLost."""
        ...

    def place(self, view: CatalogView, ready: Sequence[LeafFilter]) -> bool:
        """Whether searches can read a version now, and these filters of it: call again until they can.

        It waits, and returns False, while there is no room until another version is let go, and while a
        version is on its way; that one is given up if another is asked for. Never blocks for long. Raises
        CatalogError for a version that there can be no room for, DeviceLost.
        """
        ...

    def keep(self, views: Sequence[CatalogView]) -> None:
        """No version but these is read from now on, neither by what runs nor by what was prepared."""
        ...

    def warm_up(self, trie: Trie) -> None:
        """Pay all first-use costs; call it once, before the first launch."""
        ...

    def try_searches(self, trie: Trie) -> list[Tried]:
        """What steps of some searches take that nobody asked for; none where it cannot be said."""
        ...
