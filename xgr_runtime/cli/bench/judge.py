"""Whether an answer keeps the promises: real items, each once, as many as there are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.catalog import Catalog
    from xgr_runtime.cli.bench.reference import Agreement, AnswerFile, Reference
    from xgr_runtime.cli.bench.traffic import Call


class _BeamMeta(msgspec.Struct):
    cumulative_logprob: float


class _Beam(msgspec.Struct):
    output_ids: tuple[int, ...]
    meta_info: _BeamMeta


class _Meta(msgspec.Struct):
    beam_results: list[_Beam]
    prompt_tokens: int
    cached_tokens: int = 0


class _Answer(msgspec.Struct):
    """The part of an answer that is looked at; whatever else it says is skipped unread."""

    meta_info: _Meta


_DECODE = msgspec.json.Decoder(_Answer).decode


@dataclass(frozen=True, slots=True)
class Verdict:
    """`readable` is False for a body that is not an answer; the rest is 0 then."""

    readable: bool
    invalid: int = 0  # SIDs that are not in the catalog
    duplicates: int = 0  # SIDs beyond the first of their kind
    missing: int = 0  # results that the catalog could have filled
    prompt_tokens: int = 0
    cached_tokens: int = 0
    agreement: Agreement | None = None


class Judge:
    """Knows the catalog, and what another run answered."""

    def __init__(
        self, catalog: Catalog, reference: Reference | None = None, answers: AnswerFile | None = None
    ) -> None:
        self._index = SidIndex(catalog)
        self._leaves = catalog.leaves
        self._reference, self._answers = reference, answers

    def judge(self, call: Call, body: bytes) -> Verdict:
        """Of the body of an answer with status 200."""
        try:
            meta = _DECODE(body).meta_info
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Verdict(readable=False)
        sids = [beam.output_ids for beam in meta.beam_results]
        if self._answers:
            scores = (beam.meta_info.cumulative_logprob for beam in meta.beam_results)
            self._answers.write(call.prompt, call.width, list(zip(sids, scores, strict=True)))
        return Verdict(
            readable=True,
            invalid=self._index.unknown(sids),
            duplicates=len(sids) - len(set(sids)),
            missing=max(0, min(call.n, self._leaves) - len(sids)),
            prompt_tokens=meta.prompt_tokens,
            cached_tokens=meta.cached_tokens,
            agreement=self._reference.compare(call.prompt, call.width, sids) if self._reference else None,
        )


class SidIndex:
    """Finds many SIDs at once: a node is looked up by (node above it, token), level by level."""

    def __init__(self, catalog: Catalog) -> None:
        self._depth, self._vocab = catalog.depth, catalog.vocab_size
        # First leaves of the nodes of each level, the root's first and the leaves' own last.
        firsts = [np.zeros(1, np.int64), *(lo[:-1].astype(np.int64) for lo in catalog.trie.lo[:-1])]
        firsts.append(np.arange(catalog.leaves, dtype=np.int64))
        self._keys = [
            (np.searchsorted(above, below, side="right") - 1) * self._vocab + catalog.trie.tokens[level]
            for level, (above, below) in enumerate(pairwise(firsts))
        ]

    def unknown(self, sids: Sequence[tuple[int, ...]]) -> int:
        """How many of them the catalog does not hold."""
        whole = [sid for sid in sids if len(sid) == self._depth and all(0 <= t < self._vocab for t in sid)]
        if not whole:
            return len(sids)
        tokens = np.array(whole, np.int64)  # [N, depth]
        node, known = np.zeros(len(tokens), np.int64), np.ones(len(tokens), np.bool_)
        for level, keys in enumerate(self._keys):
            wanted = node * self._vocab + tokens[:, level]
            node = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known &= keys[node] == wanted
        return len(sids) - int(known.sum())
