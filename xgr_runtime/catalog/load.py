"""What servers call: a built file is opened, a source is built in memory, both are held to the checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from xgr_runtime.catalog.build import build_catalog
from xgr_runtime.catalog.file import is_built_file
from xgr_runtime.catalog.verify import verify_file
from xgr_runtime.catalog.vocabulary import read_vocabulary
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from xgr_runtime.catalog.snapshot import Catalog

_log = logging.getLogger(__name__)


def load_catalog(path: str | Path, model_dir: str | Path | None = None) -> Catalog:
    """The catalog at `path`, verified and within the vocabulary of the checkpoint. Raises CatalogError."""
    path, model_dir = Path(path), None if model_dir is None else Path(model_dir)
    if not is_built_file(path):
        command = f"xgr catalog build {path} --out FILE" + (f" --model-path {model_dir}" if model_dir else "")
        _log.info("building the catalog in memory; to save this: %s", command)
        return build_catalog(path, model_dir)
    # Kernels follow these arrays without bounds checks, so a damaged file must not get past this line.
    catalog = verify_file(path)
    size = read_vocabulary(model_dir).size
    try:
        return catalog if size is None else catalog.for_vocabulary(size)
    except CatalogError as error:
        raise CatalogError(f"{path}: {error}") from error
