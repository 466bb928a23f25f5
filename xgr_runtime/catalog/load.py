"""What servers call: a built file is opened, a source is built in memory, both are held to the checkpoint."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import BinaryIO

from xgr_runtime.catalog.build import build_catalog
from xgr_runtime.catalog.file import is_built_file, map_memory, read_header, sealed_file
from xgr_runtime.catalog.sealed import is_sealed
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.verify import KeptFindings, summed, verify_memory
from xgr_runtime.catalog.vocabulary import vocabulary_size
from xgr_runtime.errors import CatalogError
from xgr_runtime.files import open_ordinary

_log = logging.getLogger(__name__)


def load_catalog(
    path: str | Path, model_dir: str | Path | None = None, kept: KeptFindings | None = None
) -> Catalog:
    """The catalog at `path`, verified and within the vocabulary of the checkpoint. Raises CatalogError.

    kept: see `verify_memory`.
    """
    path, model_dir = Path(path), None if model_dir is None else Path(model_dir)
    if not is_built_file(path):
        command = f"xgr catalog build {path} --out FILE" + (f" --model-path {model_dir}" if model_dir else "")
        _log.info("building the catalog in memory; to save this: %s", command)
        return build_catalog(path, model_dir)
    # Kernels follow these arrays without bounds checks, so a damaged file must not get past this line.
    with sealed_file(path) as memory:
        if _is_that(memory, path):
            summed(memory, path)
            # Mapped anew, so that what only the sums needed of it is not resident here from now on.
            catalog = Catalog.mapped(path, *map_memory(memory, path))
        else:
            catalog = verify_memory(memory, path, kept)
    return _within(catalog, path, model_dir)


def seal_catalog(
    path: str | Path, model_dir: str | Path | None = None, kept: KeptFindings | None = None
) -> tuple[BinaryIO, str]:
    """Sealed memory with the built form of the catalog at `path`, checked as by `load_catalog`; its version.

    Raises CatalogError.
    """
    path, model_dir = Path(path), None if model_dir is None else Path(model_dir)
    memory = sealed_file(path) if is_built_file(path) else build_catalog(path, model_dir).seal()
    try:
        return memory, _within(verify_memory(memory, path, kept), path, model_dir).version
    except BaseException:
        memory.close()
        raise


def handed_down(path: Path, version: str) -> BinaryIO | None:
    """The sealed memory itself to which `path` leads, if that has this version and its checksums hold.

    None: take the file anew. The launcher has verified what it hands down.
    """
    try:
        with open_ordinary(path) as file:
            if not is_sealed(file) or read_header(path).version != version:
                return None
        memory = sealed_file(path)
    except (CatalogError, OSError, ValueError):
        return None
    try:
        summed(memory, path)
        return memory
    except CatalogError:
        memory.close()
        return None


def _is_that(memory: BinaryIO, path: Path) -> bool:
    """Whether `path` leads to this memory itself: our launcher has verified it before it handed it down."""
    try:
        return os.path.samestat(os.fstat(memory.fileno()), path.stat())
    except OSError:
        return False


def _within(catalog: Catalog, path: Path, model_dir: Path | None) -> Catalog:
    """The catalog for the vocabulary of the checkpoint. Raises CatalogError."""
    size = vocabulary_size(model_dir)
    try:
        return catalog if size is None else catalog.for_vocabulary(size)
    except CatalogError as error:
        raise CatalogError(f"{path}: {error}") from error
