"""The catalog itself: one immutable snapshot of SIDs, trie, items and template, built or memory-mapped."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np

from xgr_kernels.trie import Trie
from xgr_runtime.catalog import bits
from xgr_runtime.catalog.attributes import AttributeColumn, AttributeField, stored_columns, stored_fields
from xgr_runtime.catalog.content import OPTIONAL, TABLES, Content
from xgr_runtime.catalog.file import REBUILD, Header, map_file, write_file, write_memory
from xgr_runtime.catalog.items import HashIndex, StringTable, encode_ids, find_rows
from xgr_runtime.catalog.layout import shape_problem
from xgr_runtime.catalog.places import LeafPlaces
from xgr_runtime.catalog.scoring import NEUTRAL, Scoring
from xgr_runtime.catalog.slots import Later, TextsBySlot
from xgr_runtime.catalog.template import PromptTemplate, Templates, prompt_tokens
from xgr_runtime.catalog.trie import Levels, branching, relative_levels, scored_levels
from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.catalog.where import ColumnSegment, ItemRows, LiveRows
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    Int32 = NDArray[np.int32]

FEW_IDS = 256  # that are looked up together: their rows are kept, as items come in many histories
RECENT_IDS = 1 << 16  # of which rows are kept, about
_PIECE = 1 << 14  # ids that are looked up together: their text and the places of its bytes take room


class Catalog:
    """An immutable snapshot. Leaves and rows are numbers; item ids are text. Rows are slots: see `slots.py`.

    version: content hash, hexadecimal; of edits, a hash of what led to it. sids int32 [leaves, depth] sorted;
    trie: over them. leaf_of_row int32 [slots]; places: the rows of each leaf, in collision order. A search
    descends `levels`, which have the forced tokens of `scoring`, too. later: what edits made of a built one;
    `basis`: its version when its SIDs last got a token that they had not.
    """

    def __init__(
        self,
        version: str,
        vocab_size: int,
        templates: Templates,
        arrays: Mapping[str, NDArray[Any]],
        scoring: Scoring = NEUTRAL,
        later: Later | None = None,
        basis: str = "",
    ) -> None:
        self.version = version
        self.basis = basis or version
        self.edited = later is not None
        self.later = later = later or Later()
        self.templates = templates
        self.scoring = scoring
        self.arrays = arrays
        self.sids: Int32 = arrays["sids"]
        self.leaves, self.depth = map(int, self.sids.shape)
        tokens, lo = (tuple(arrays[f"{name}.{n}"] for n in range(self.depth)) for name in ("tokens", "lo"))
        self.trie = Trie(self.leaves, tokens, lo)
        self.item_lo: Int32 = arrays["item_lo"]
        self.leaf_of_row: Int32 = arrays["leaf_of_row"]
        order = None if later.added is None else later.added.whole_order()
        self.places = LeafPlaces(self.item_lo, self.leaf_of_row, order, later.added)
        self.built_slots = len(arrays["hashes"])
        self._ids, self._titles, self._attributes = (
            TextsBySlot(_table(arrays, name), getattr(later, name), self.built_slots) for name in TABLES
        )
        self.index = HashIndex(arrays["hashes"], arrays["hash_rows"], arrays["hash_starts"])
        self.vocab_size_known = vocab_size  # 0: it is not
        self._recent: dict[str | int, int] = {}  # rows of ids that short lists had lately

    @classmethod
    def from_content(
        cls,
        content: Content,
        vocab_size: int | None = None,
        index: HashIndex | None = None,
        basis: str = "",
    ) -> Catalog:
        """Derives trie and lookup arrays of checked content; `index` of its ids where it is at hand."""
        arrays = {**content.arrays(), **content.derived(index)}
        version = content.version()
        return cls(version, vocab_size or 0, content.templates, arrays, content.scoring, basis=basis)

    @classmethod
    def open(cls, path: str | Path) -> Catalog:
        """Maps a copy of a built file; reads its header only, so `verify` it where it comes from elsewhere.

        Raises CatalogError with the remedy for a file that is missing, truncated or damaged.
        """
        return cls.mapped(path, *map_file(Path(path)))

    @classmethod
    def mapped(cls, path: str | Path, header: Header, arrays: Mapping[str, NDArray[Any]]) -> Catalog:
        """Of what was mapped of a built file. Raises CatalogError that names `path`."""
        problem = shape_problem(arrays, len(header.scoring.emitted_tail))
        if problem is None and not 0 <= header.vocab_size <= MAX_TOKEN + 1:
            problem = "the vocabulary size is impossible"
        if problem is None:
            problem = header.templates.problem() or header.scoring.problem(arrays["sids"].shape[1])
        if problem is not None:
            raise CatalogError(f"{path}: {problem}: {REBUILD}")
        return cls(header.version, header.vocab_size, header.templates, arrays, header.scoring)

    def for_vocabulary(self, size: int) -> Catalog:
        """The same catalog for a checkpoint of `size` tokens. Raises CatalogError for a token outside."""
        if self.vocab_size_needed > size:
            raise CatalogError(
                f"token {self.vocab_size_needed - 1} is out of vocabulary, the checkpoint has {size} tokens: "
                "use the checkpoint that the SIDs were made for, or build the catalog again with this one"
            )
        later = self.later if self.edited else None
        return Catalog(self.version, size, self.templates, self.arrays, self.scoring, later, self.basis)

    def save(self, path: str | Path) -> None:
        """Writes the built file: a temporary one beside it, then a rename. Raises CatalogError."""
        self._check_built()
        write_file(Path(path), self._header, self.arrays)

    def seal(self) -> BinaryIO:
        """The built file in sealed memory, for other processes. Raises CatalogError."""
        self._check_built()
        return write_memory(self._header, self.arrays)

    @property
    def template(self) -> PromptTemplate:
        """The default template, where it is of ids. Raises CatalogError where it is another."""
        found = self.templates.default
        if not isinstance(found, PromptTemplate):
            raise CatalogError(
                "the catalog's default template is not of ids: render prompts with a tokenizer"
            )
        return found

    @property
    def _header(self) -> Header:
        return Header(self.version, self.vocab_size_known, self.templates, (), self.scoring)

    def _check_built(self) -> None:
        if self.edited:
            raise CatalogError(f"the catalog {self.version} has edits in it: compact it first")

    @property
    def content(self) -> Content:
        """Of a built catalog. Raises CatalogError for one with edits."""
        self._check_built()
        tables = self._ids.table, self._titles.table, self._attributes.table
        columns, more = tuple(self.columns.values()), (self.arrays[name] for name in OPTIONAL)
        return Content(self.sids, self.item_lo, *tables, self.templates, self.scoring, columns, *more)

    @cached_property
    def columns(self) -> dict[str, AttributeColumn]:
        """What filters read of the items' attributes, by name: those of the built file."""
        return stored_columns(self.arrays)

    @property
    def texts(self) -> tuple[TextsBySlot, ...]:
        """Ids, titles and attributes."""
        return self._ids, self._titles, self._attributes

    @cached_property
    def fields(self) -> list[AttributeField]:
        """Names and kinds of its columns, which edits do not change."""
        return stored_fields(self.arrays)

    @property
    def rows_by_column(self) -> ItemRows:
        """What conditions are evaluated over."""
        visible = None if self.visible is None else self.visible.rows
        built = ColumnSegment(0, self.built_slots, self.columns)
        return ItemRows((built, *self.later.segments), self.places, visible)

    @property
    def slots(self) -> int:
        """Numbers of items: those of dead ones, too."""
        return len(self.leaf_of_row)

    @cached_property
    def items(self) -> int:
        """How many items it holds, hidden ones among them."""
        return self.slots if self.later.present is None else bits.count(self.later.present)

    @cached_property
    def visible(self) -> LiveRows | None:
        """The items that answers may list, and their leaves; None: all."""
        if self.edited or not len(self.arrays["hidden"]):
            return self.later.visible
        shown = bits.filled(self.slots)
        shown.view(np.uint8)[: len(self.arrays["hidden"])] &= ~self.arrays["hidden"]
        return LiveRows("", shown, self.places.filter(shown), shown)

    def present(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these rows [N] are items that were neither removed nor replaced."""
        found = self.later.present
        return np.ones(len(rows), np.bool_) if found is None else bits.holds(found, rows)

    def popularity(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """Of each row [N], minus infinity where it has none."""
        built, later = self.arrays["popularity"], self.later
        found = np.full(len(rows), -np.inf)
        if len(built):
            inside = rows < self.built_slots
            found[inside] = built[rows[inside]]
        if later.popularity:
            behind = rows >= self.built_slots
            found[behind] = np.array(later.popularity)[rows[behind] - self.built_slots]
        if later.ranked:
            ranked, values = np.array([*later.ranked]), np.array([*later.ranked.values()])
            order = np.argsort(ranked)
            at = np.minimum(np.searchsorted(ranked, rows, sorter=order), len(order) - 1)
            same = ranked[order[at]] == rows
            found[same] = values[order[at[same]]]
        return found

    @cached_property
    def scored_levels(self) -> Levels:
        """Of a search in score mode `vocab`."""
        return scored_levels(self.trie, self.scoring, self.arrays)

    @cached_property
    def relative_levels(self) -> Levels:
        """Of a search in the other score modes."""
        return relative_levels(self.trie, self.scoring)

    @property
    def emitted_tokens(self) -> int:
        """Tokens that a search emits, for which a score counts."""
        return self.depth + self.scoring.forced

    @cached_property
    def codebooks(self) -> tuple[NDArray[np.int64], ...]:
        """Of each level of SIDs the tokens, ascending, over which score mode `level` takes its softmax."""
        if self.scoring.level_tokens:
            return tuple(np.arange(first, last + 1) for first, last in self.scoring.level_tokens)
        return tuple(_members(tokens) for tokens in self.trie.tokens)

    @cached_property
    def sid_tokens(self) -> NDArray[np.bool_]:
        """Which tokens [largest + 1] stand in SIDs."""
        declared = self.scoring.level_tokens  # of which SIDs may have no more than some
        levels = self.trie.tokens if declared else self.codebooks
        seen = np.zeros(max(int(tokens.max()) for tokens in levels) + 1, np.bool_)
        for tokens in levels:
            seen[tokens] = True
        return seen

    @cached_property
    def vocab_size_needed(self) -> int:
        """The smallest vocabulary that holds every token of SIDs, template and scoring."""
        fixed = max(self.templates.max_token, self.scoring.max_token)
        return max(fixed, *(int(level.max()) for level in self.trie.tokens)) + 1

    @property
    def vocab_size(self) -> int:
        """Of the checkpoint it was built for, else the smallest one that fits."""
        return self.vocab_size_known or self.vocab_size_needed

    @property
    def trie_bytes(self) -> int:
        """Bytes of the CSR arrays (tokens and lo), without the SID matrix."""
        return sum(array.nbytes for array in (*self.trie.tokens, *self.trie.lo))

    def branching(self) -> list[tuple[float, int]]:
        """(mean, maximum) children per node, by level, from the root."""
        return branching(self.trie)

    def collisions(self) -> tuple[int, int]:
        """(items that share their SID with another, most items on one SID)."""
        counts = np.diff(self.item_lo)
        return int(counts[counts > 1].sum()), int(counts.max())

    def item_rows(self, item_ids: Sequence[str | int]) -> Int32:
        """Row of each id, int32 [N], -1 for ids that it does not hold. Removed items have theirs."""
        if len(item_ids) <= FEW_IDS:
            return self._few_rows(item_ids)
        pieces = [item_ids[first : first + _PIECE] for first in range(0, len(item_ids), _PIECE)]
        rows = [self._rows(encode_ids(piece)) for piece in pieces]
        return np.concatenate([np.empty(0, np.int32), *rows])

    def _few_rows(self, item_ids: Sequence[str | int]) -> Int32:
        """Of a history: most of its items were in one before."""
        recent = self._recent
        rows = [*map(recent.get, item_ids)]
        missing = [at for at, row in enumerate(rows) if row is None]
        if missing:
            wanted = [item_ids[at] for at in missing]
            if len(recent) > RECENT_IDS:
                recent.clear()
            for at, item, row in zip(missing, wanted, self._rows(encode_ids(wanted)).tolist(), strict=True):
                rows[at] = row
                if row >= 0:
                    recent[item] = row
        return np.array(rows, np.int32)

    def _rows(self, encoded: list[bytes]) -> Int32:
        rows = find_rows(self.index, self._ids.table, encoded)
        if newest := self.later.newest:
            for at, row in enumerate(map(newest.get, encoded)):
                if row is not None:
                    rows[at] = row
        return rows

    def leaves_of_items(self, item_ids: Sequence[str | int]) -> Int32:
        """Leaf of each id, int32 [N], -1 for ids that the catalog does not hold."""
        rows = self.item_rows(item_ids)
        return np.where(rows < 0, np.int32(-1), self.leaf_of_row[rows])

    def item_id(self, row: int) -> str:
        return self._ids.get(row).decode()

    def rows_of_leaves(
        self,
        leaves: ArrayLike,
        *,
        allowed_rows: Int32 | None = None,
        denied_rows: Int32 | None = None,
        live: LiveRows | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of each leaf's items in collision order, of those that are allowed, live and not denied.

        Of all leaves [N] one after the other, and where each leaf's begin, closing with their number [N + 1].
        live: None: those that are visible. The row sets are sorted, as `resolve_items` gives them.
        """
        rows, ends = self.places.on(np.asarray(leaves, np.int64))
        live = live or self.visible
        denies = denied_rows is not None and len(denied_rows) > 0
        if allowed_rows is None and live is None and not denies:
            return rows, np.concatenate([np.zeros(1, np.int64), ends])
        keep = np.ones(len(rows), np.bool_)
        if allowed_rows is not None:
            keep &= _member(allowed_rows, rows)
        if denied_rows is not None:
            keep &= ~_member(denied_rows, rows)
        if live is not None:
            keep &= live.holds(rows)
        kept = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
        return rows[keep], kept[np.concatenate([np.zeros(1, np.int64), ends])]

    def items_of_leaves(
        self,
        leaves: ArrayLike,
        *,
        allowed_rows: Int32 | None = None,
        denied_rows: Int32 | None = None,
        live: LiveRows | None = None,
    ) -> list[list[str]]:
        """Ids of each leaf's items: see `rows_of_leaves`."""
        rows, begins = self.rows_of_leaves(
            leaves, allowed_rows=allowed_rows, denied_rows=denied_rows, live=live
        )
        names = self.ids_at(rows)
        return [names[first:last] for first, last in pairwise(begins.tolist())]

    def ids_at(self, rows: NDArray[np.integer]) -> list[str]:
        """The id of each row's item."""
        return self._ids.strings(rows)

    def title(self, item: str | int) -> str | None:
        """The item's title; None if it has none or the catalog does not hold it."""
        row = int(self.item_rows([item])[0])
        return (self._titles.get(row).decode() or None) if row >= 0 else None

    def attributes(self, item: str | int) -> dict[str, Any]:
        """The item's attributes, {} if it has none or the catalog does not hold it."""
        row = int(self.item_rows([item])[0])
        text = self._attributes.get(row) if row >= 0 else b""
        return msgspec.json.decode(text, type=dict[str, Any]) if text else {}

    def titles_at(self, rows: NDArray[np.integer]) -> list[str]:
        """The title of each row, "" where it has none."""
        return [title.decode() for title in self._titles.take(rows)]

    def attributes_at(self, rows: NDArray[np.integer]) -> list[dict[str, Any]]:
        """The attributes of each row, {} where it has none."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        return [decode(text) if text else {} for text in self._attributes.take(rows)]

    def attribute_texts_at(self, rows: NDArray[np.integer]) -> list[bytes]:
        """The attributes of each row as JSON of an object, b"" where it has none."""
        return self._attributes.take(rows)

    @property
    def has_titles(self) -> bool:
        return self._titles.any()

    def has_attribute(self, name: str) -> bool:
        """Whether some item has it."""
        key = re.escape(msgspec.json.encode(name) + b":")
        found = re.search(key, self._attributes.table.blob.data)
        return found is not None or any(re.search(key, text) for text in self.later.attributes)

    def prompt_tokens(
        self, history: Sequence[int] | NDArray[np.integer], max_prompt_tokens: int
    ) -> tuple[list[int], int]:
        """Prompt of the newest leaves of `history` (oldest first) that fit, and how many were dropped.

        Raises CatalogError when the template alone is longer than `max_prompt_tokens`.
        """
        return prompt_tokens(self.template, self.sids, history, max_prompt_tokens)


def _table(arrays: Mapping[str, NDArray[Any]], name: str) -> StringTable:
    return StringTable(arrays[f"{name}.blob"], arrays[f"{name}.offsets"])


def _members(tokens: Int32) -> NDArray[np.int64]:
    """Distinct tokens, ascending, without sorting millions."""
    seen = np.zeros(int(tokens.max()) + 1, np.bool_)
    seen[tokens] = True
    return np.flatnonzero(seen)


def _member(sorted_rows: Int32, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    at = np.searchsorted(sorted_rows, rows)
    return np.searchsorted(sorted_rows, rows, side="right") > at
