"""A router's start: with the store's current version, or with the one catalog that it was given."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from router.catalogs.publisher import Publisher
from router.catalogs.servable import Servable
from router.catalogs.writer import Writer
from router.dispatch.dispatcher import Dispatcher
from xgr_runtime.catalog import Catalogs, CatalogView, load_catalog
from xgr_runtime.catalog.store import Store, begin
from xgr_runtime.catalog.vocabulary import vocabulary_size
from xgr_runtime.config import RouterConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.prompts import Prompts


@dataclass(eq=False)
class Beginning:
    """What is served at first, and whoever changes it, where there is a store."""

    catalogs: Catalogs
    store: Store | None = None
    writer: Writer | None = None
    servable: Servable | None = None  # set once tokenizer and templates are read

    def hold_to(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        """What is pushed later has to be like this version, with these."""
        if self.store is not None:
            self.servable = Servable(self.catalogs.newest.catalog, tokenizer, prompts)

    def publisher(self, config: RouterConfig, dispatcher: Dispatcher) -> Publisher | None:
        """None without a store. The dispatcher's workers are those that it spreads versions to."""
        if self.store is None or self.writer is None:
            return None
        roster = dispatcher.roster
        publisher = Publisher(
            self.store,
            self.writer,
            self.catalogs,
            dispatcher.router,
            lambda: roster.decode,
            config.catalog_patience,
        )
        roster.versions_in_use, roster.lag = publisher.keeps, publisher.lag
        dispatcher.on_version = publisher.heard
        return publisher


def begun(config: RouterConfig, files: Path) -> Beginning:
    """Read what is served. `files`: of the checkpoint. Raises CatalogError, ConfigError."""
    if not config.catalog_store:
        if not config.catalog:
            raise ConfigError("no catalog is named: give --catalog FILE, or a --catalog-store that has one")
        return Beginning(Catalogs(CatalogView(load_catalog(config.catalog, files), config.filter_bytes)))
    store = Store(Path(config.catalog_store), config.catalog_keep)
    try:
        chain = begin(store, config.catalog, files)
        found: list[Beginning] = []
        writer = Writer(store, _servable_of(found), Path(config.model_path), config.filter_bytes)
        view = writer.open(chain, vocabulary_size(files), config.catalog)
    except BaseException:
        store.close()
        raise
    found.append(Beginning(Catalogs(view), store, writer))
    return found[0]


def _servable_of(found: list[Beginning]) -> Callable[[], Servable]:
    def servable() -> Servable:
        assert found[0].servable is not None, "nothing is pushed before the router serves"
        return found[0].servable

    return servable
