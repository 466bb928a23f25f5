"""A catalog as tests see it: a plain dict from item to SID, read without the code under test."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

Sid = tuple[int, ...]


@dataclass(frozen=True)
class Items:
    """SIDs by item id. `without` and `only` are the filters of the brute-force oracle."""

    sids: dict[str, Sid]

    @cached_property
    def by_sid(self) -> dict[Sid, set[str]]:
        """The items of each SID."""
        found: dict[Sid, set[str]] = defaultdict(set)
        for item, sid in self.sids.items():
            found[sid].add(item)
        return dict(found)

    @cached_property
    def children(self) -> dict[Sid, list[int]]:
        """The trie: the tokens that may follow each prefix, ascending."""
        found: dict[Sid, set[int]] = defaultdict(set)
        for sid in self.by_sid:
            for level, token in enumerate(sid):
                found[sid[:level]].add(token)
        return {prefix: sorted(tokens) for prefix, tokens in found.items()}

    @property
    def depth(self) -> int:
        return len(next(iter(self.sids.values())))

    def without(self, denied: Collection[str]) -> Items:
        """A catalog that lacks these items."""
        return Items({item: sid for item, sid in self.sids.items() if item not in denied})

    def only(self, allowed: Collection[str]) -> Items:
        """A catalog of these items alone."""
        return Items({item: sid for item, sid in self.sids.items() if item in allowed})

    def cut(self, depth: int) -> Items:
        """The same items with the first `depth` tokens of their SIDs, so that more of them share one."""
        return Items({item: sid[:depth] for item, sid in self.sids.items()})

    def write_index(self, path: Path, model: Path) -> Path:
        """An index.json of these items, in the tokens of the checkpoint at `model`."""
        spell = read_tokenizer(model).id_to_token
        path.write_text(json.dumps({item: [spell(t) for t in sid] for item, sid in self.sids.items()}))
        # SIDs that are cut lack levels of the checkpoint, as they are meant to.
        path.with_name("catalog.json").write_text(json.dumps({"sid_format": "token_ids"}))
        return path


def read_items(catalog: Path, model: Path) -> Items:
    """The items of an index.json or of a catalog.jsonl."""
    number = read_tokenizer(model).get_vocab()
    return Items({item: tuple(number[token] for token in sid) for item, sid in _rows(catalog)})


def read_tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def _rows(catalog: Path) -> Iterable[tuple[str, list[str]]]:
    text = catalog.read_text(encoding="utf-8")
    if catalog.suffix == ".json":
        return list(json.loads(text).items())
    return [(row["item"], row["sid"]) for row in map(json.loads, text.splitlines())]
