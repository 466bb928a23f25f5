"""The generations of a TorchEasyRec SID bundle: what each manifest says, and which one adds to which.

ROOT/GENERATION/manifest.json            written last: a folder without one is not finished
ROOT/GENERATION/item_to_sid/part-*       item_id, codebook: the codes of its SID, and more
ROOT/GENERATION/sid_to_items/part-*      codebook, itemids: always Parquet
ROOT/GENERATION/delta_item_to_sid/part-* of `item_to_sid` the rows that the generation before does not have

A generation holds all items, those of the one before as they were. One without `since_bundle_uuid` is made
anew, of other codes maybe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from xgr_runtime.catalog.declared import Names
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog import Catalog

    Codes = NDArray[np.int64]

ITEMS, SIDS, NEW_ITEMS = "item_to_sid", "sid_to_items", "delta_item_to_sid"
COLUMNS = Names(item="item_id", sid="codebook")
_PIECE = 1 << 17  # rows


class Artifact(msgspec.Struct, frozen=True):
    """Where a table is, and how many rows it has."""

    save_type: str
    rows: Annotated[int, Meta(ge=0)]
    location: str


class Manifest(msgspec.Struct, frozen=True):
    """As much of manifest.json as is needed here."""

    bundle_uuid: Annotated[str, Meta(min_length=1, max_length=256)]
    codebook: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=8)]
    artifacts: dict[str, Artifact]
    since_bundle_uuid: str | None = None


class Generation(msgspec.Struct, frozen=True):
    """One that is finished."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    def table(self, artifact: str) -> Path:
        """The folder of a table, whose parts have as many rows as the manifest says. Raises CatalogError."""
        entry = self.manifest.artifacts.get(artifact)
        if entry is None:
            raise CatalogError(f"{self.folder}: the manifest names no {artifact}: publish it again with one")
        if entry.save_type != "parquet":
            raise CatalogError(
                f"{self.folder}: {artifact} is written as {entry.save_type!r:.40}: publish it as Parquet"
            )
        folder = next(
            (place for place in (self.folder / artifact, Path(entry.location)) if place.is_dir()), None
        )
        if folder is None:
            raise CatalogError(
                f"{self.folder}: {artifact} is neither in there nor at {entry.location!r:.200}: copy it there"
            )
        rows = sum(_rows(path) for path in parts(folder))
        if rows != entry.rows:
            raise CatalogError(f"{folder} has {rows} rows, the manifest says {entry.rows}: copy it again")
        return folder

    def check_codes(self, folder: Path) -> None:
        """Whether all SIDs of a table are of the manifest's codebook. Raises CatalogError naming the row."""
        import pyarrow.parquet as pq

        sizes = np.array(self.manifest.codebook)
        for path in parts(folder):
            first = 0
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_PIECE, columns=[COLUMNS.sid]):
                    row = _wrong_row(batch.column(0), sizes)
                    if row is not None:
                        sid = batch.column(0)[row].as_py()
                        raise CatalogError(
                            f"{path}: row {first + row + 1}: the SID {sid!r:.80} is not of the codebook "
                            f"{sizes.tolist()}: publish the bundle again"
                        )
                    first += batch.num_rows


def check_buckets(folder: Path, generation: Generation, catalog: Catalog) -> None:
    """Whether the rows of `sid_to_items` are the leaves of a catalog of `item_to_sid`.

    Raises CatalogError naming the row.
    """
    import pyarrow.parquet as pq

    tokens = [np.full(size, -1) for size in generation.manifest.codebook]  # of each code, by level
    found, items = 0, 0
    for path in parts(folder):
        first = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_PIECE, columns=[COLUMNS.sid, "itemids"]):
                codes = batch.column(0).flatten().to_numpy().reshape(-1, len(tokens))
                row = _other_bucket(codes, batch.column(1), tokens, catalog)
                if row is not None:
                    raise CatalogError(
                        f"{path}: row {first + row + 1}: {ITEMS} has other items on that SID: "
                        "publish the bundle again"
                    )
                first += batch.num_rows
                items += len(batch.column(1).flatten())
        found += first
    if (found, items) != (catalog.leaves, catalog.items):
        raise CatalogError(
            f"{folder} has {items} items on {found} SIDs, {ITEMS} {catalog.items} on {catalog.leaves}: "
            "publish the bundle again"
        )


def _other_bucket(codes: Codes, lists: Any, tokens: list[Codes], catalog: Catalog) -> int | None:
    """The first row of codes [N, depth] and lists of items that is no leaf; `tokens` learn those of codes."""
    lengths = lists.value_lengths().to_numpy()
    if (lengths < 1).any():
        return int(np.argmax(lengths < 1))
    leaves = catalog.leaves_of_items(lists.flatten().to_pylist())
    own = leaves[np.cumsum(lengths) - lengths]
    wrong = own < 0
    wrong[np.repeat(np.arange(len(own)), lengths)[leaves != np.repeat(own, lengths)]] = True
    for level, known in enumerate(tokens):
        code, token = codes[:, level], catalog.sids[own, level]
        new = known[code] < 0
        known[code[new]] = token[new]
        wrong |= known[code] != token
    return int(np.argmax(wrong)) if wrong.any() else None


def parts(folder: Path) -> list[Path]:
    """The files of a table, in order."""
    return sorted(folder.glob("part-*.parquet"))


def read_bundle(root: Path) -> dict[str, Generation]:
    """All finished generations by their uuid. Raises CatalogError for what is no bundle."""
    try:
        manifests = sorted(root.glob("*/manifest.json"))
        found = [Generation(path.parent, _manifest(path)) for path in manifests]
    except OSError as error:
        raise CatalogError(f"{root} cannot be read ({error.strerror or error}): check the path") from error
    if not found:
        raise CatalogError(f"{root} holds no generation with a manifest.json: name the root of a SID bundle")
    generations: dict[str, Generation] = {}
    for one in found:
        other = generations.setdefault(one.manifest.bundle_uuid, one)
        if other is not one:
            raise CatalogError(f"{other.folder} and {one.folder} have one bundle_uuid: take one of them away")
    return generations


def named(generations: dict[str, Generation], name: str) -> Generation:
    """The generation of that name; "": the one that no other adds to. Raises CatalogError."""
    if name:
        for one in generations.values():
            if one.name == name:
                return one
        raise CatalogError(f"there is no finished generation {name!r:.80}: there are {_names(generations)}")
    older = {one.manifest.since_bundle_uuid for one in generations.values()}
    newest = {uuid: one for uuid, one in generations.items() if uuid not in older}
    if len(newest) != 1:
        raise CatalogError(f"{_names(newest)} are all the newest of their kind: name one with --generation")
    return next(iter(newest.values()))


def after(generations: dict[str, Generation], current: Generation) -> Generation | None:
    """The one that adds to `current`, if there is one. Raises CatalogError where two do."""
    uuid = current.manifest.bundle_uuid
    later = {key: one for key, one in generations.items() if one.manifest.since_bundle_uuid == uuid}
    if len(later) > 1:
        raise CatalogError(f"{_names(later)} both add to {current.name}: take one of them away")
    for one in later.values():
        if one.manifest.codebook != current.manifest.codebook:
            raise CatalogError(f"{one.folder} has another codebook than {current.folder}, to which it adds")
        return one
    return None


def _names(generations: dict[str, Generation]) -> str:
    return ", ".join(sorted(one.name for one in generations.values()))


def _manifest(path: Path) -> Manifest:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CatalogError(f"{path}: {error!s:.200}: publish the bundle again") from error


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, ValueError) as error:
        raise CatalogError(f"{path} is not a Parquet file ({error!s:.200}): copy it again") from error


def _wrong_row(column: Any, sizes: Codes) -> int | None:
    """The first row of a column of lists whose codes are none of these sizes."""
    import pyarrow as pa

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not lists or not pa.types.is_integer(column.type.value_type) or column.null_count:
        return 0
    lengths = column.value_lengths().to_numpy()
    uneven = np.flatnonzero(lengths != len(sizes))
    if len(uneven):
        return int(uneven[0])
    if column.flatten().null_count:
        return 0
    codes = column.flatten().to_numpy().reshape(-1, len(sizes))
    wrong = np.flatnonzero(((codes < 0) | (codes >= sizes)).any(axis=1))
    return int(wrong[0]) if len(wrong) else None
