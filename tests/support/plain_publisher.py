"""Changes of a catalog in one process: no workers, no waiting; what a change leads to is in use at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from router.catalogs.publishing import Prepared, Published
from xgr_runtime.catalog import Catalogs, CatalogView, load_catalog
from xgr_runtime.catalog.edits import EditBatch, edited
from xgr_runtime.catalog.store import Store
from xgr_runtime.errors import BadRequest, NotFound, OtherVersion
from xgr_runtime.wire.answers import CatalogInfo, CatalogVersion

_encode = msgspec.msgpack.Encoder().encode


class PlainPublisher:
    """See `Publishing`. `store` and `catalogs` begin with one version. `asked`: who was to be waited for."""

    def __init__(self, store: Store, catalogs: Catalogs, vocab_size: int) -> None:
        self.store, self.catalogs, self.vocab_size = store, catalogs, vocab_size
        self.asked: list[bool] = []

    async def edit(
        self,
        make: Callable[[CatalogView], Prepared],
        key: str,
        expected: str,
        wait: bool,
        digest: str = "",
    ) -> Published:
        self.asked.append(wait)
        first = self.store.answered(key) if key else None
        if first is not None:
            if first.digest != digest:
                raise BadRequest("key was used for something else", "key")
            return msgspec.msgpack.decode(first.answer, type=Published)
        view = self.catalogs.newest
        if expected not in ("", view.version):
            raise OtherVersion(f"the catalog has version {view.version}, not {expected}", "version")
        batch, unknown = make(view)
        if batch == EditBatch():
            said = self._said(view.version, tuple(unknown), False)
            with self.store.writing():
                self.store.remember(key, digest, view.version, _encode(said))
            return said
        after = edited(view, batch)
        said = self._said(after.version, tuple(unknown))
        with self.store.writing():
            self.store.append(
                view.version, after.version, _encode(batch), "an edit", key, digest, _encode(said)
            )
        self.catalogs.add(after)
        return said

    async def push(self, file: Path, wait: bool) -> Published:
        self.asked.append(wait)
        catalog = load_catalog(file).for_vocabulary(self.vocab_size)
        if catalog.version == self.catalogs.newest.version:
            return self._said(catalog.version, changed=False)
        with self.store.writing():
            self.store.push(catalog, file.name)
        self.catalogs.add(CatalogView(catalog))
        return self._said(catalog.version)

    async def rollback(self, version: str | None, wait: bool) -> Published:
        self.asked.append(wait)
        found = version or self.store.before()
        if found is None or not self.store.keeps(found):
            raise NotFound(f"the store does not keep {found}", "version")
        with self.store.writing():
            self.store.switch(found)
        chain = self.store.chain()
        view = CatalogView(load_catalog(chain.file).for_vocabulary(self.vocab_size))
        for _, batch in chain.batches:
            view = edited(view, msgspec.msgpack.decode(batch, type=EditBatch))
        assert view.version == found
        self.catalogs.add(view)
        return self._said(found)

    async def set_filter(self, name: str, where: str | None) -> None:
        with self.store.writing():
            try:
                self.store.set_filter(name, where)
            except KeyError:
                raise NotFound(f"there is no filter {name}", "name") from None

    def filters(self) -> Mapping[str, str]:
        return {name: one.where for name, one in self.store.filters().items()}

    def status(self) -> CatalogInfo:
        newest = self.catalogs.newest
        held = [
            CatalogVersion(
                version, version == newest.version, self.catalogs.leases(version), [], newest.catalog.items
            )
            for version in self.catalogs.versions
        ]
        return CatalogInfo(
            True, self.store.current or "", newest.version, held, None, {"ipc:///b": "it lags"}
        )

    def _said(self, version: str, unknown: tuple[str, ...] = (), changed: bool = True) -> Published:
        return Published(version, 0.5, 1, unknown, changed)
