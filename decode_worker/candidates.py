"""Candidates that a request wants scored, in portions: each is a search that drops none of its own.

Its filter lets a portion of the candidates live, and its width is their number. So it walks the tree of their
prefixes, of which each is one beam whoever shares it. Candidates are in the order of the trie: two portions
in a row share one path at most. No portion has more beams than the widest search.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from decode_worker.search import Floats, Ints, Question
from xgr_kernels.trie import LeafFilter, leaf_filter
from xgr_runtime.errors import BadRequest
from xgr_runtime.scheduling.cost_model import Work, beams_by_level, portion_sizes, search_work


@dataclass
class Portions:
    """The candidates that no search has taken yet, and the scores of those that are known."""

    whole: Question  # whose filter lets live what a legal softmax is over
    rest: list[Ints]  # leaves, ascending, the next portion first
    leaves: list[Ints] = field(default_factory=list)
    scores: list[Floats] = field(default_factory=list)

    @classmethod
    def of(cls, whole: Question, candidates: Ints, width: int) -> Self:
        """In portions of at most `width`. Raises `BadRequest` for leaves that die or do not ascend."""
        if not live_ascending(whole, candidates):
            raise BadRequest("candidates must be live leaves in ascending order", "candidates")
        ends = np.cumsum(portion_sizes(len(candidates), width))
        return cls(whole, np.split(candidates, ends[:-1]))

    @property
    def works(self) -> list[Work]:
        """What each of the portions that are left asks for."""
        return [self._work(len(portion)) for portion in self.rest]

    def next(self) -> Question:
        """The search of the next portion, which is left no more."""
        portion, whole = self.rest.pop(0), self.whole
        over = whole.filter if whole.score_mode == "legal" else None
        alive = leaf_filter(whole.trie.leaves, portion)
        return replace(
            whole, width=len(portion), results=len(portion), filter=alive, over=over, shared_bits=False
        )

    def take(self, leaves: Ints, scores: Floats) -> None:
        """What the search of a portion found."""
        self.leaves.append(leaves)
        self.scores.append(scores)

    def answer(self) -> tuple[Ints, Floats]:
        """Leaves and scores of all portions [n], best first, and in the order of the trie where they tie."""
        leaves, scores = np.concatenate(self.leaves), np.concatenate(self.scores)
        order = np.lexsort((leaves, -scores))
        return leaves[order], scores[order]

    def _work(self, candidates: int) -> Work:
        beams = beams_by_level(candidates, self.whole.trie.nodes, candidates)
        return search_work(self.whole.prompt_tokens, beams[:-1])


def live_ascending(question: Question, leaves: Ints) -> bool:
    """Whether these are some leaves that the question's filter lets live, distinct and in ascending order."""
    if not len(leaves) or leaves[0] < 0 or leaves[-1] >= question.trie.leaves:
        return False
    alive: LeafFilter = question.filter
    ascending = bool((leaves[1:] > leaves[:-1]).all())
    return ascending and bool(alive.holds(leaves).all()) and not np.isin(leaves, alive.deny).any()
