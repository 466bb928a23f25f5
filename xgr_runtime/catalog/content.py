"""What a catalog is made of: the content, its hash, and the arrays that follow from it.

Only `Content` is information; the rest is derived, and stored so that opening a catalog costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from xgr_runtime.catalog.attributes import AttributeColumn, column_arrays
from xgr_runtime.catalog.file import array_bytes
from xgr_runtime.catalog.items import HashIndex, StringTable, hash_table, index_hashes
from xgr_runtime.catalog.scoring import NEUTRAL, Scoring
from xgr_runtime.catalog.trie import csr_levels, tail_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgr_runtime.catalog.template import Templates

    Int32 = NDArray[np.int32]

TABLES = ("ids", "titles", "attributes")
OPTIONAL = ("popularity", "hidden")
"""Arrays that are empty where no item has a popularity, or none is hidden."""


def _no_numbers() -> NDArray[np.float64]:
    return np.empty(0, np.float64)


def _no_octets() -> NDArray[np.uint8]:
    return np.empty(0, np.uint8)


@dataclass(frozen=True)
class Content:
    """All that defines a catalog. Rows are items in the order of their leaves, then of collisions."""

    sids: Int32  # [leaves, depth] sorted, distinct
    item_lo: Int32  # [leaves + 1] first row of each leaf, closing with the number of items
    ids: StringTable  # per row
    titles: StringTable  # per row, or empty
    attributes: StringTable  # per row, canonical JSON, or empty
    templates: Templates
    scoring: Scoring
    columns: tuple[AttributeColumn, ...] = ()  # of attributes, by name
    popularity: NDArray[np.float64] = field(default_factory=_no_numbers)  # per row, -inf: none; or empty
    hidden: NDArray[np.uint8] = field(default_factory=_no_octets)  # bit r: row r is in no answer; or empty

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays under the names that they have in the built file."""
        named: dict[str, NDArray[Any]] = {"sids": self.sids, "item_lo": self.item_lo}
        for name, table in zip(TABLES, (self.ids, self.titles, self.attributes), strict=True):
            named |= {f"{name}.blob": table.blob, f"{name}.offsets": table.offsets}
        named |= {"popularity": self.popularity, "hidden": self.hidden}
        return named | column_arrays(self.columns)

    def version(self) -> str:
        """xxh3_128 over the content, hexadecimal: neither source format nor row order enters."""
        digest = xxhash.xxh3_128(msgspec.msgpack.encode(self.templates))
        if self.scoring != NEUTRAL:  # so that catalogs that say nothing of it keep their versions
            digest.update(msgspec.msgpack.encode(self.scoring))
        for name, array in self.arrays().items():
            if name in OPTIONAL and not len(array):
                continue  # likewise
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array_bytes(array))
        return str(digest.hexdigest())

    def derived(self, index: HashIndex | None = None) -> dict[str, NDArray[Any]]:
        """The arrays that follow from the content: trie, leaf of each row, `index` of the ids."""
        tokens, lo = csr_levels(self.sids)
        index = index or index_hashes(hash_table(self.ids))
        return {
            **{f"tokens.{level}": array for level, array in enumerate(tokens)},
            **{f"lo.{level}": array for level, array in enumerate(lo)},
            **tail_arrays(len(self.sids), self.scoring),
            "leaf_of_row": _leaf_of_row(self.item_lo),
            "hashes": index.hashes,
            "hash_rows": index.rows,
            "hash_starts": index.starts,
        }


def _leaf_of_row(item_lo: Int32) -> Int32:
    """[items], each leaf having one at least. `np.repeat` keeps other threads from the interpreter."""
    leaf = np.zeros(int(item_lo[-1]), np.int32)
    leaf[item_lo[1:-1]] = 1
    return np.cumsum(leaf, dtype=np.int32, out=leaf)
