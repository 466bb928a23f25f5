"""How much of the vocabulary head a level needs: all of it, or the range that holds the level's tokens.

A score that is relative to legal tokens needs no logit of others. SIDs' tokens are mostly some thousands in a
row, of some hundred thousand, so that most of the head need not be read.
"""

from typing import NamedTuple

from xgr_kernels.beam_select.cuda_memory import ALIGNED, aligned
from xgr_kernels.trie import Int32, Trie
from xgr_runtime.model.backends.head import Head


class LevelHead(NamedTuple):
    """The head of the tokens from `first_token` on, and what selection reads of each row of logits."""

    head: Head
    first_token: int
    columns: int  # a multiple of ALIGNED

    @staticmethod
    def whole(head: Head) -> "LevelHead":
        """Of the vocabulary."""
        return LevelHead(head, 0, aligned(head.vocab))

    @staticmethod
    def by_level(head: Head, trie: Trie) -> dict[int, "LevelHead"]:
        """Of the levels that need less than the vocabulary."""
        found = {level: token_range(tokens, head.vocab) for level, tokens in enumerate(trie.tokens)}
        return {
            level: LevelHead(head.of_range(first, end), first, end - first)
            for level, (first, end) in found.items()
            if end - first < head.vocab
        }


def token_range(tokens: Int32, vocab: int) -> tuple[int, int]:
    """The tokens [first, end) that hold all of `tokens`, a multiple of ALIGNED many; else the vocabulary."""
    first, end = int(tokens.min(initial=vocab)), int(tokens.max(initial=0)) + 1
    columns = max(ALIGNED, aligned(end - first))
    first = min(first, vocab - columns)
    return (first, first + columns) if first >= 0 else (0, vocab)
