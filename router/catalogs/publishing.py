"""What the HTTP edge asks of whoever changes the catalog, and what it is told."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from xgr_runtime.catalog import CatalogView
from xgr_runtime.catalog.edits.batch import EditBatch
from xgr_runtime.wire.answers import CatalogInfo


class Prepared(NamedTuple):
    """A batch that was made for one version, and what was asked for and is not in it."""

    batch: EditBatch
    unknown: Sequence[str] = ()  # ids that the version does not hold


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change that is kept for good, and who serves it.

    With `wait`, no request that begins from now on is answered from an earlier version by this router.
    """

    version: str  # that the change led to
    visible_ms: float  # from the call until it was in use; without `wait`, until it was kept
    workers: int  # decode workers that hold it
    unknown: tuple[str, ...] = ()  # ids that were asked for and are not in the catalog
    changed: bool = True  # false: what was asked for was so already


class Publishing(Protocol):
    """Changes the catalog, one change after the other.

    All that change something raise `BadRequest` for what is refused, whereupon nothing has changed, and
    `Overloaded` where so many wait already. A caller that goes away does not stop what it began.
    """

    async def edit(
        self,
        make: Callable[[CatalogView], Prepared],
        key: str,
        expected: str,
        wait: bool,
        digest: str = "",
    ) -> Published:
        """Apply one batch.

        `make` is called with the newest version of the store once it is this change's turn, maybe in a
        thread; what it raises ends the call. `key`: idempotency, "" for none; a change of that key is not
        made twice, and its first answer is given again; `digest`: of what it asks, which has to be the same
        then. `expected`: the version that has to be current, ""
        for any. Raises `OtherVersion` where another one is.
        """
        ...

    async def push(self, file: Path, wait: bool) -> Published:
        """Begin anew with a built catalog, or with a source that is built first.

        The file is copied before this returns. One that the checkpoint cannot serve is refused before
        anything is sent. The catalog that is current already changes nothing.
        """
        ...

    async def rollback(self, version: str | None, wait: bool) -> Published:
        """Go back to a version that the store keeps, None: the one before. Raises `NotFound`."""
        ...

    async def set_filter(self, name: str, where: str | None) -> None:
        """Name a condition, or None: forget it. It is ready on all workers before this returns.

        Raises `NotFound` for a name to forget that there is not.
        """
        ...

    def filters(self) -> Mapping[str, str]:
        """The named conditions."""
        ...

    def status(self) -> CatalogInfo:
        """Versions, who holds them, and what is on its way."""
        ...
