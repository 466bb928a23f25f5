"""Which catalog a start serves: the store's current version, or the file that an empty one begins with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from xgr_runtime.catalog.file import is_built_file, read_header
from xgr_runtime.catalog.load import load_catalog
from xgr_runtime.errors import CatalogError, StoreError

if TYPE_CHECKING:
    from xgr_runtime.catalog.store.records import Chain
    from xgr_runtime.catalog.store.store import Store
    from xgr_runtime.catalog.verify import KeptFindings

log = logging.getLogger(__name__)


def begin(store: Store, file: str, model_dir: str | Path, kept: KeptFindings | None = None) -> Chain:
    """How the version that is served comes about; an empty store takes `file` in.

    kept: see `verify_memory`. Raises StoreError where there is no first version, CatalogError for one that
    cannot be served.
    """
    if store.current is None:
        if not file:
            raise StoreError(f"{store.path} holds no catalog yet: give it the first one with --catalog FILE")
        catalog = load_catalog(file, model_dir, kept)
        with store.writing():
            if store.current is None:  # another process was faster
                store.push(catalog, Path(file).name)
                log.info("%s begins with %s, version %s", store.path, file, catalog.version)
                return store.chain()
    chain = store.chain()
    if file:
        _tell(store, chain, Path(file))
    return chain


def _tell(store: Store, chain: Chain, file: Path) -> None:
    """A file is not used, which may surprise whoever named it."""
    try:
        if is_built_file(file) and read_header(file).version in (chain.base, chain.version):
            return
    except CatalogError:
        pass
    log.warning(
        "%s has a current version, %s, which is served: --catalog %s is not looked at; "
        "`xgr catalog push` brings it in",
        *(store.path, chain.version, file),
    )
