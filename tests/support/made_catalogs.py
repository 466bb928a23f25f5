"""Catalogs of items and SIDs that are in memory, the leaf of a SID, the items of a leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xgr_runtime.catalog.build import assemble
from xgr_runtime.catalog.checks import check_lengths
from xgr_runtime.catalog.columns import Columns, canonical
from xgr_runtime.catalog.declared import Declared
from xgr_runtime.catalog.rows import gather
from xgr_runtime.catalog.template import PromptTemplate, Template, Templates
from xgr_runtime.catalog.vocabulary import Vocabulary
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from xgr_runtime.catalog import Catalog, Scoring


def build_from_arrays(
    items: Sequence[str | int],
    sids: ArrayLike,
    *,
    popularity: Sequence[float | None] | None = None,
    titles: Sequence[str | None] | None = None,
    attributes: Sequence[dict[str, Any] | None] | None = None,
    template: Template | None = None,
    vocab_size: int | None = None,
    scoring: Scoring | None = None,
) -> Catalog:
    """A catalog from item ids [N] and token ids [N, depth] that are in memory. Raises CatalogError."""
    matrix = np.asarray(sids)
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.integer):
        raise CatalogError(f"sids must be integers [items, depth], they are {matrix.dtype} {matrix.shape}")
    texts = None if attributes is None else [canonical(value) for value in attributes]
    lengths = [matrix.shape[1]] * len(matrix)
    columns = Columns(items, (), lengths, lambda row: f"row {row + 1}", titles, popularity, texts)
    check_lengths(columns)
    columns.tokens = matrix.reshape(-1)
    rows = gather([columns], Declared(), Vocabulary(vocab_size))
    return assemble(rows, vocab_size, Templates.of(template or PromptTemplate()), scoring)


def leaf_of_sid(catalog: Catalog, sid: Sequence[int]) -> int | None:
    """The leaf of these token ids, None if the catalog has no such SID: down the trie, node by node."""
    trie = catalog.trie
    if len(sid) != trie.depth:
        return None
    first, last = 0, trie.leaves
    for token, tokens, lo in zip(sid, trie.tokens, trie.lo, strict=True):
        a, b = np.searchsorted(lo, [first, last]) if len(lo) else (first, last)
        node = a + int(np.searchsorted(tokens[a:b], token))
        if node == b or int(tokens[node]) != token:
            return None
        first, last = (int(lo[node]), int(lo[node + 1])) if len(lo) else (node, node + 1)
    return first


def items_of_leaf(
    catalog: Catalog,
    leaf: int,
    allowed_rows: NDArray[np.int32] | None = None,
    denied_rows: NDArray[np.int32] | None = None,
) -> list[str]:
    """`Catalog.items_of_leaves` for one leaf."""
    return catalog.items_of_leaves([leaf], allowed_rows=allowed_rows, denied_rows=denied_rows)[0]
