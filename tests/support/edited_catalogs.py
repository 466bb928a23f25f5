"""Batches applied to a plain dict of items, and what a catalog of these items must say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import torch
from attribute_rows import Condition

from xgr_kernels.beam_select.reference import select
from xgr_kernels.beam_select.types import BeamBatch
from xgr_kernels.trie import LeafFilter, no_filter
from xgr_runtime.catalog import Catalog, CatalogView, Scoring
from xgr_runtime.catalog.attributes import AttributeField
from xgr_runtime.catalog.attributes.stored import packed_bits
from xgr_runtime.catalog.build import assemble
from xgr_runtime.catalog.columns import Columns
from xgr_runtime.catalog.declared import Declared
from xgr_runtime.catalog.edits import EditBatch, ItemRecord
from xgr_runtime.catalog.items import id_order
from xgr_runtime.catalog.rows import gather
from xgr_runtime.catalog.scoring import NEUTRAL
from xgr_runtime.catalog.template import PromptTemplate, Templates
from xgr_runtime.catalog.trie import csr_levels, tail_arrays
from xgr_runtime.catalog.vocabulary import Vocabulary

Sid = tuple[int, ...]


@dataclass
class Oracle:
    """What a catalog holds after some batches, by definition."""

    fields: tuple[AttributeField, ...]
    items: dict[str, ItemRecord] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    known: dict[str, Sid] = field(default_factory=dict)  # SIDs for histories, of removed items, too
    scoring: Scoring = NEUTRAL
    vocab_size: int = 100

    def apply(self, batch: EditBatch) -> None:
        """A batch without mistakes."""
        for record in batch.put:
            self.items[record.id] = record
            self.known[record.id] = record.sid
        for name in batch.remove:
            del self.items[name]
            self.hidden.discard(name)
        self.hidden = (self.hidden | {*batch.hide}) - {*batch.show}
        for name, popularity in batch.rank:
            self.items[name] = msgspec.structs.replace(self.items[name], popularity=popularity)
        if batch.compact:
            self.known = {name: record.sid for name, record in self.items.items()}

    @property
    def visible(self) -> list[ItemRecord]:
        return [record for name, record in self.items.items() if name not in self.hidden]

    def lists(self, items: Iterable[ItemRecord] | None = None) -> dict[Sid, list[str]]:
        """The ids on each SID, in the order of builds."""
        found = defaultdict(list)
        for record in self.visible if items is None else items:
            found[record.sid].append(record)
        return {sid: [record.id for record in sorted(some, key=_standing)] for sid, some in found.items()}

    def built(self) -> Catalog:
        """Of all items, in the order in which they came; who is hidden is."""
        records = [*self.items.values()]
        columns = Columns(
            [record.id for record in records],
            np.array([record.sid for record in records], np.int64).reshape(-1),
            [len(record.sid) for record in records],
            str,
            [record.title for record in records],
            [record.popularity for record in records],
            [record.attributes for record in records],
        )
        rows = gather([columns], Declared(), Vocabulary(self.vocab_size))
        found = assemble(rows, self.vocab_size, Templates.of(PromptTemplate()), self.scoring, self.fields)
        hidden = np.array([found.item_id(row) in self.hidden for row in range(found.items)])
        if not hidden.any():
            return found
        return Catalog.from_content(replace(found.content, hidden=packed_bits(hidden)), self.vocab_size)


def _standing(record: ItemRecord) -> tuple[Any, ...]:
    popularity = -np.inf if record.popularity is None else record.popularity
    return -popularity, id_order(record.id)


def attributes_of(record: ItemRecord) -> dict[str, Any]:
    return dict(msgspec.json.decode(record.attributes)) if record.attributes else {}


def assert_is(view: CatalogView, oracle: Oracle, conditions: Sequence[Condition] = ()) -> None:
    """The view lists, counts, filters and remembers what the oracle does, and its arrays fit together."""
    catalog = view.catalog
    sids = [tuple(sid) for sid in catalog.sids.tolist()]
    assert sids == sorted(set(sids))
    _assert_lists(view, view.live(None), oracle.lists(), sids)
    assert catalog.items == len(oracle.items)
    for condition in conditions:
        left = [record for record in oracle.visible if condition.of(attributes_of(record)) is True]
        _assert_lists(view, view.live(condition.sql), oracle.lists(left), sids)
    _assert_arrays(catalog)
    names = [*oracle.known]
    leaves = catalog.leaves_of_items(names)
    assert {name: sids[leaf] for name, leaf in zip(names, leaves.tolist(), strict=True)} == oracle.known
    rows = catalog.item_rows([*oracle.items])
    assert catalog.titles_at(rows) == [record.title for record in oracle.items.values()]
    assert catalog.attributes_at(rows) == [attributes_of(record) for record in oracle.items.values()]


def _assert_lists(view: CatalogView, live: Any, expected: dict[Sid, list[str]], sids: list[Sid]) -> None:
    lists = view.catalog.items_of_leaves(np.arange(view.leaves), live=live)
    assert {sid: names for sid, names in zip(sids, lists, strict=True) if names} == expected
    leaves = no_filter() if live is None else live.leaves
    alive = leaves.holds(np.arange(view.leaves, dtype=np.int32))
    assert alive.tolist() == [bool(names) for names in lists]
    assert leaves.live(view.leaves) == len(expected)
    if len(leaves.bits):
        assert len(leaves.bits) == -(-view.leaves // 64) and len(leaves.rank) == -(-view.leaves // 512) + 1


def _assert_arrays(catalog: Catalog) -> None:
    """What follows from SIDs follows from them."""
    tokens, lo = csr_levels(catalog.sids)
    for level in range(catalog.depth):
        assert np.array_equal(catalog.trie.tokens[level], tokens[level])
        assert np.array_equal(catalog.trie.lo[level], lo[level])
    for name, array in tail_arrays(catalog.leaves, catalog.scoring).items():
        assert np.array_equal(catalog.arrays[name], array)
    levels = catalog.scored_levels
    assert levels.trie.leaves == catalog.leaves and len(levels.trie.tokens[-1]) == catalog.leaves
    for level, members in enumerate(catalog.codebooks):
        if not catalog.scoring.level_tokens:
            assert members.tolist() == np.unique(catalog.sids[:, level]).tolist()


def best_sids(catalog: Catalog, leaves: LeafFilter | None, width: int, vocab: int) -> list[tuple[Sid, float]]:
    """An exact beam search whose logits follow from the tokens before, by definition."""
    beams: list[tuple[Sid, float, int, int]] = [((), 0.0, 0, catalog.leaves)]
    for level in range(catalog.depth):
        if not beams:
            return []
        logits = torch.stack([_logits(prefix, vocab) for prefix, *_ in beams])
        batch = BeamBatch(
            [0, len(beams)],
            [level],
            [width],
            [catalog.trie],
            [leaves or no_filter()],
            ["vocab"],
            np.array([beam[1] for beam in beams], np.float32),
            np.array([beam[2] for beam in beams], np.int32),
            np.array([beam[3] for beam in beams], np.int32),
        )
        found = select(logits, batch)
        rows = zip(found.score, found.token, found.parent, found.lo, found.hi, strict=True)
        beams = [
            ((*beams[parent][0], int(token)), float(score), int(lo), int(hi))
            for score, token, parent, lo, hi in rows
        ]
    return [(sid, score) for sid, score, *_ in beams]


def _logits(prefix: Sid, vocab: int) -> torch.Tensor:
    seed = hash(prefix) % (1 << 31)
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
