"""The versions of a catalog that a process holds: the newest, and older ones that are still read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from xgr_runtime.catalog.where import KeptFilters

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from xgr_kernels.trie import LeafFilter, ScoreMode, Trie
    from xgr_runtime.catalog.snapshot import Catalog
    from xgr_runtime.catalog.trie import Levels
    from xgr_runtime.catalog.where import LiveRows


@dataclass(frozen=True, eq=False)
class CatalogView:
    """One version, as a request sees it from its first check to its answer."""

    catalog: Catalog
    filter_bytes: int = 64 << 20  # that evaluated expressions may take
    carried: KeptFilters | None = None  # from the version before

    @cached_property
    def filters(self) -> KeptFilters:
        """Expressions over its attributes."""
        return self.carried or KeptFilters(self.catalog.rows_by_column, self.filter_bytes)

    @property
    def visible(self) -> LeafFilter | None:
        """The leaves with a visible item; None: every leaf has one, and a search needs no filter."""
        found = self.catalog.visible
        return None if found is None or found.leaves.live(self.leaves) == self.leaves else found.leaves

    def live(self, where: str | None) -> LiveRows | None:
        """The items that a condition leaves; without one, those that are visible, None: all of them.

        Raises BadRequest naming a position of the text.
        """
        return self.catalog.visible if where is None else self.filters.left_by(where)

    def ready(self) -> None:
        """Works out what requests and edits ask of every version; threads call it, so that neither waits."""
        _ = self.visible, self.trie, self.catalog.items, self.catalog.codebooks, self.catalog.sid_tokens

    @property
    def version(self) -> str:
        return self.catalog.version

    @property
    def trie(self) -> Trie:
        """All levels that a search may descend."""
        return self.catalog.scored_levels.trie

    def levels(self, mode: ScoreMode) -> Levels:
        """What a search in that score mode descends."""
        return self.catalog.scored_levels if mode == "vocab" else self.catalog.relative_levels

    @property
    def leaves(self) -> int:
        return self.catalog.leaves

    @property
    def depth(self) -> int:
        """Tokens of a SID."""
        return self.catalog.depth


class Lease:
    """A version that is kept until `end`. Once is enough; a `with` block ends it too."""

    def __init__(self, view: CatalogView, catalogs: Catalogs) -> None:
        self.view = view
        self._catalogs = catalogs

    def end(self) -> None:
        """Its holder reads the version no more."""
        self._catalogs.ended(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Catalogs:
    """By version. For one thread: whoever works for a lease's holder elsewhere is given the view."""

    def __init__(self, first: CatalogView) -> None:
        self.newest = first
        self._views = {first.version: first}
        self._leases: set[Lease] = set()
        self._kept: frozenset[str] = frozenset()

    @property
    def versions(self) -> list[str]:
        """All that are held, the newest last."""
        return list(self._views)

    @property
    def views(self) -> list[CatalogView]:
        """All that are held, the newest last."""
        return list(self._views.values())

    def get(self, version: str) -> CatalogView | None:
        """The version, if it is held."""
        return self._views.get(version)

    def leases(self, version: str) -> int:
        """How many hold it now."""
        return sum(lease.view.version == version for lease in self._leases)

    def add(self, view: CatalogView) -> None:
        """The newest from now on; the one before it goes once nobody leases or keeps it."""
        self._views.pop(view.version, None)
        self._views[view.version] = self.newest = view
        self._let_go()

    def keep(self, versions: Collection[str]) -> None:
        """Hold these, of those that are here, also while nobody leases them, until this is called again."""
        self._kept = frozenset(versions)
        self._let_go()

    def lease(self, version: str | None = None) -> Lease:
        """Hold that version, or the newest. Raises `KeyError` for one that is not here."""
        view = self.newest if version is None else self._views[version]
        lease = Lease(view, self)
        self._leases.add(lease)
        return lease

    def ended(self, lease: Lease) -> None:
        """See `Lease.end`."""
        self._leases.discard(lease)
        if lease.view is not self.newest:
            self._let_go()

    def _let_go(self) -> None:
        read = {self.newest.version, *self._kept, *(lease.view.version for lease in self._leases)}
        self._views = {version: view for version, view in self._views.items() if version in read}
