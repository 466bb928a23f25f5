"""Changes of the catalog as one thread makes them: in the store before anybody hears of them.

Nothing here waits for workers. What a call returns is in the store, and in what the next call begins with.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec

from router.catalogs.publishing import Prepared
from router.catalogs.servable import Servable
from router.catalogs.shelf import BaseFile, ChainStep, Shelf
from xgr_runtime.catalog import CatalogView
from xgr_runtime.catalog.build import build_catalog
from xgr_runtime.catalog.edits import edited
from xgr_runtime.catalog.edits.batch import EditBatch
from xgr_runtime.catalog.file import is_built_file
from xgr_runtime.catalog.load import handed_down
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.store import Chain, Store
from xgr_runtime.catalog.verify import verify_file
from xgr_runtime.errors import BadRequest, CatalogError, NotFound, OtherVersion, StoreError

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


class Made(NamedTuple):
    """A version that is current in the store now."""

    view: CatalogView
    shelf: Shelf  # how workers come to it
    kind: str  # edit, push, rollback, compact; follow: another router's
    unknown: tuple[str, ...] = ()
    later: Shelf | None = None  # what newcomers get once it is in use


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a call led to, as it is answered, and kept under the call's key."""

    version: str
    unknown: tuple[str, ...] = ()  # ids
    changed: bool = True


class Writer:
    """For one thread. All calls but `follow` hold the store's lock, and begin with what others wrote."""

    def __init__(
        self, store: Store, servable: Callable[[], Servable], model_dir: Path, filter_bytes: int
    ) -> None:
        """`servable`: what holds catalogs to the checkpoint, once there is one to compare with."""
        self._store = store
        self._servable = servable
        self._model_dir = model_dir
        self._filter_bytes = filter_bytes
        self._files: WeakValueDictionary[str, BaseFile] = WeakValueDictionary()  # that are in memory
        self.view: CatalogView
        self.shelf: Shelf

    def open(self, chain: Chain, vocab_size: int | None, file: str = "") -> CatalogView:
        """Begin with what the store has; `file`: it may be in memory already. Raises CatalogError."""
        memory = handed_down(Path(file), chain.base) if file else None
        if memory is not None:
            base = self._files[chain.base] = BaseFile.of(chain.base, memory)
        else:
            base = self._file(chain.base)
        self.view, self.shelf = self._replayed(base, chain, vocab_size)
        self.view.ready()
        return self.view

    def edit(
        self,
        make: Callable[[CatalogView], Prepared],
        key: str,
        expected: str,
        digest: str = "",
    ) -> tuple[list[Made], Kept]:
        """What others wrote meanwhile and what this made, both to be spread; and what is answered.

        Raises OtherVersion, CatalogError, BadRequest for a key of something else.
        """
        with self._store.writing():
            made = self._caught_up()
            if key and (first := self._store.answered(key)) is not None:
                if first.digest != digest:
                    raise BadRequest(
                        f"key is {key!r:.80}, under which something else was asked for: send another", "key"
                    )
                return made, msgspec.msgpack.decode(first.answer, type=Kept)
            self._check_version(expected)
            batch, unknown = make(self.view)
            if batch == EditBatch():
                nothing = Kept(self.view.version, tuple(unknown), False)
                if key:
                    self._store.remember(key, digest, nothing.version, _encode(nothing))
                return made, nothing
            made.append(self._append(batch, tuple(unknown), key, digest))
        return made, Kept(made[-1].view.version, tuple(unknown))

    def compact(self) -> list[Made]:
        """Lay the newest version out as a built file. Raises CatalogError."""
        with self._store.writing():
            made = self._caught_up()
            one = self._append(EditBatch(compact=True), (), "", "")
            self._store.rebase(one.view.catalog)
            self.shelf = Shelf(self._file(one.view.version))
            made.append(one._replace(kind="compact", later=self.shelf))
        return made

    def read(self, file: Path) -> Catalog:
        """What is to be pushed; in any thread. Raises CatalogError naming what is wrong, and items."""
        catalog = verify_file(file) if is_built_file(file) else build_catalog(file, self._model_dir)
        try:
            return self._servable().checked(catalog)
        except CatalogError as error:
            raise CatalogError(f"{file.name}: {error}") from None

    def push(self, catalog: Catalog, name: str) -> tuple[list[Made], Kept]:
        """Begin a new chain with what was read from the file of that name. Raises CatalogError."""
        with self._store.writing():
            made = self._caught_up()
            if catalog.version == self.view.version:
                self._store.rebase(catalog)  # its file may have been taken away
                return made, Kept(catalog.version, changed=False)
            self._store.push(catalog, name)
            base = self._file(catalog.version)
            view = CatalogView(base.catalog.for_vocabulary(catalog.vocab_size), self._filter_bytes)
            made.append(self._begin(view, Shelf(base), "push"))
        return made, Kept(view.version)

    def rollback(self, version: str | None) -> tuple[list[Made], Kept]:
        """Raises NotFound, CatalogError."""
        with self._store.writing():
            made = self._caught_up()
            if version == self.view.version:
                return made, Kept(version, changed=False)
            found = version or self._store.before()
            if found is None:
                raise NotFound("there is no version before this one", "version")
            if not self._store.keeps(found):
                raise NotFound(f"the store does not keep a version {found}: see GET /catalog", "version")
            view, shelf = self._brought(self._store.chain(found), onward=False)
            self._store.switch(found)
            made.append(self._begin(view, shelf, "rollback"))
        return made, Kept(found)

    def set_filter(self, name: str, where: str | None) -> None:
        """Raises NotFound."""
        with self._store.writing():
            try:
                self._store.set_filter(name, where)
            except KeyError:
                raise NotFound(f"there is no filter of the name {name!r:.80}", "name") from None

    def look(self) -> bool:
        """Whether another router wrote since the last look."""
        return self._store.look()

    def follow(self) -> list[Made]:
        """What other routers made current. Raises CatalogError."""
        return self._caught_up()

    def filters(self) -> dict[str, str]:
        """The named conditions."""
        return {name: one.where for name, one in self._store.filters().items()}

    # --- on the newest version ---

    def _caught_up(self) -> list[Made]:
        """The store's current version, where that is another one than ours."""
        current = self._store.current
        if current is None or current == self.view.version:
            return []
        view, shelf = self._brought(self._store.chain(current, after=self.view.version))
        return [self._begin(view, shelf, "follow")]

    def _brought(self, chain: Chain, onward: bool = True) -> tuple[CatalogView, Shelf]:
        """Where a chain leads, from where we are if it may go on there. Raises CatalogError."""
        base = self.shelf.base
        if chain.base == base.version and onward:
            try:
                return self._onward(chain)
            except CatalogError:  # it has other batches from somewhere before, or begins at the file
                chain = self._store.chain(chain.version)
        elif chain.base != base.version:
            base = self._file(chain.base)
        return self._replayed(base, chain, self.view.catalog.vocab_size)

    def _onward(self, chain: Chain) -> tuple[CatalogView, Shelf]:
        view, shelf = self.view, self.shelf
        for version, data in chain.batches:
            view = applied(view, version, data)
            shelf = shelf.and_then(ChainStep(version, data))
        if view.version != chain.version:
            raise CatalogError(f"version {chain.version} is another one's")
        return view, shelf

    def _replayed(self, base: BaseFile, chain: Chain, vocab_size: int | None) -> tuple[CatalogView, Shelf]:
        catalog = base.catalog if vocab_size is None else base.catalog.for_vocabulary(vocab_size)
        view = CatalogView(catalog, self._filter_bytes)
        for version, data in chain.batches:
            view = applied(view, version, data)
        return view, Shelf(base, tuple(ChainStep(*step) for step in chain.batches))

    def _file(self, version: str) -> BaseFile:
        """Of the store; what workers may still ask for is in memory already. Raises StoreError."""
        found = self._files.get(version)
        if found is None:
            found = self._files[version] = BaseFile.of(version, self._store.sealed(version))
        return found

    def _begin(self, view: CatalogView, shelf: Shelf, kind: str) -> Made:
        view.ready()
        self.view, self.shelf = view, shelf
        return Made(view, shelf, kind)

    def _append(self, batch: EditBatch, unknown: tuple[str, ...], key: str, digest: str) -> Made:
        before, data = self.view, _encode(batch)
        view = edited(before, batch)
        if view.catalog.basis != before.catalog.basis:  # a SID brings a token that none had
            self._servable().checked(view.catalog)
        answer = _encode(Kept(view.version, unknown))
        self._store.append(before.version, view.version, data, summary(batch), key, digest, answer)
        return self._begin(view, self.shelf.and_then(ChainStep(view.version, data)), "edit")._replace(
            unknown=unknown
        )

    def _check_version(self, expected: str) -> None:
        if expected and expected != self.view.version:
            raise OtherVersion(
                f"the catalog has version {self.view.version}, not {expected}: read it again", "version"
            )


def applied(view: CatalogView, version: str, data: bytes) -> CatalogView:
    """The version that a batch of the store leads to. Raises CatalogError, StoreError for another one."""
    after = edited(view, msgspec.msgpack.decode(data, type=EditBatch))
    if after.version != version:
        raise StoreError(
            f"the batch behind {view.version} leads to {after.version}, the store says {version}: use the "
            "release that wrote it, or push the catalog again"
        )
    return after


def summary(batch: EditBatch) -> str:
    """What the history says of a batch."""
    counts = {
        "put": len(batch.put),
        "remove": len(batch.remove),
        "hide": len(batch.hide),
        "show": len(batch.show),
        "rank": len(batch.rank),
    }
    told = [f"{what} {count}" for what, count in counts.items() if count]
    return ", ".join(told) if told else "compact"
