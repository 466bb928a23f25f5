"""One request's beam search: its beams, level by level. Plain arrays, no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decode_worker.phases import TaskPhase
from xgr_kernels.trie import LeafFilter, Normaliser, ScoreMode, Trie
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.scheduling.cost_model import Work, beams_by_level, search_work

PLAIN_MODES: Sequence[ScoreMode] = ("vocab", "legal")
"""Score modes that selection knows without help."""

NOTHING_ABOVE = -1e30
"""A score that every leaf has."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class Penalty(NamedTuple):
    """On tokens that a prompt or a beam holds already."""

    factor: float  # of a log-probability below 0
    prompt: NDArray[np.int64]  # distinct tokens of the prompt
    renormalize: bool = False  # another softmax follows


@dataclass(frozen=True)
class Question:
    """What is asked: fixed for the life of a search."""

    prompt_tokens: int
    last_token: int  # of the prompt
    width: int
    results: int
    score_mode: ScoreMode
    trie: Trie  # with the levels of forced tokens
    filter: LeafFilter
    silent: frozenset[int] = frozenset()  # levels whose one token adds exactly 0
    codebooks: Sequence[
        NDArray[np.int64] | None
    ] = ()  # [depth] what a level's softmax is over; none: as usual
    penalty: Penalty | None = None
    over: LeafFilter | None = None  # leaves over which a legal softmax is, if not those of `filter`
    shared_bits: bool = False  # the bits of `filter` are a version's or a condition's: others read them too

    def __post_init__(self) -> None:
        assert (self.score_mode == "level") == bool(self.codebooks), "a level's softmax is over its codebook"

    @property
    def depth(self) -> int:
        """Tokens that the search emits."""
        return self.trie.depth

    def normaliser(self, level: int) -> Normaliser:
        """What the log-probabilities of a level's tokens are relative to."""
        if level in self.silent or self.score_mode == "legal":
            return "legal"
        return "vocab"

    @property
    def most_beams(self) -> int:
        """Beams that one level can hold."""
        return min(self.width, self.trie.leaves)

    @cached_property
    def beams(self) -> list[int]:
        """See `beams_by_level`."""
        return beams_by_level(self.width, self.trie.nodes, self.live_leaves)

    @cached_property
    def work_from(self) -> list[Work]:
        """The steps from each level on, at most; the last entry is that of a search that is over."""
        beams = self.beams[:-1]
        whole = search_work(self.prompt_tokens, beams)
        later = [
            Work(len(beams[level:]), sum(beams[level:]), sum(beams[level:]) * self.prompt_tokens)
            for level in range(1, self.depth + 1)
        ]
        return [whole, *later]

    def passes_over(self, level: int) -> bool:
        """Whether more of the level's nodes may have a live leaf than are kept."""
        return self.width < min(self.trie.nodes[level], self.live_leaves)

    @property
    def live_leaves(self) -> int:
        """Leaves that the filter lets live."""
        return self.filter.live(self.trie.leaves)


def last_kept(scores: Floats, width: int, passes_over: bool) -> float:
    """What no child that a level passed over scores above; `NOTHING_ABOVE` if it passed over none.

    scores [n], descending: of the children kept, at most `width`. passes_over: see `Question.passes_over`.
    A token adds a log-probability, at most 0, to a score. So what this bounds are all leaves below as well.
    """
    return float(scores[-1]) if passes_over and len(scores) == width else NOTHING_ABOVE


def tail_tokens_of(depth: int) -> int:
    """T, the tokens of a beam whose keys and values are stored: the newest one's never are."""
    return max(0, depth - 2)


class Search:
    """The beams of one request, best first. `level` is the level that the next selection fills.

    The first selection needs the hidden state of the prompt's last token. When none came with the KV, that
    token is the one beam of level 0: it runs over the prompt before it, later levels over the whole prompt.
    """

    def __init__(
        self, question: Question, pages: PageIds, rows: PageIds, hidden: Floats | None, tail_tokens: int
    ) -> None:
        self.question = question
        self.pages = pages  # of the prompt's KV
        self.rows = rows  # tail rows, [most_beams]
        self.hidden = hidden  # [hidden] of the prompt's last token, if it came
        self.level = 0
        self.invalid = False
        self.phase = TaskPhase.SEARCH  # what its engine says
        self.forward_seconds = 0.0
        self.ceiling = NOTHING_ABOVE  # of leaves that its beams do not lead to
        self.scores: Floats = np.zeros(1, np.float32)
        unknown = [question.last_token] if hidden is None else []
        self.tokens: Ints = np.array(unknown, np.int32)
        self.lo: Ints = np.zeros(1, np.int32)
        self.hi: Ints = np.array([question.trie.leaves], np.int32)
        self.anc: NDArray[np.int64] = np.zeros((len(unknown), tail_tokens), np.int64)

    @property
    def forward_rows(self) -> int:
        """Beams that the next step runs through the model; 0 where it has a hidden state, or needs none."""
        return 0 if self.silent and not self.level else len(self.tokens)

    @property
    def next_work(self) -> Work:
        """What the next step computes of it."""
        return Work(1, len(self.scores), self.forward_rows * self.shared_tokens)

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prompt that the next step's beams attend to in its pages."""
        return self.question.prompt_tokens - (self.level == 0)

    @property
    def tail_len(self) -> int:
        """Tokens of their own that the next step's beams have in the tail.

        The prompt's last token has none; its k and v land in slot 0 of our first row, where level 1 writes
        next.
        """
        return max(0, self.level - 1)

    @property
    def position(self) -> int:
        """Of the newest token of every beam; the prompt's last token is that of level 0."""
        return self.question.prompt_tokens + self.level - 1

    @property
    def silent(self) -> bool:
        """Every beam goes on with the one token that the next level has, and no score changes."""
        return self.level in self.question.silent

    def pass_silently(self) -> None:
        """Take the next level's one token, without a selection: beams stay as they are."""
        trie, level = self.question.trie, self.level
        tokens = np.full(len(self.scores), trie.tokens[level][0], np.int32)
        self.advance(self.scores, tokens, np.arange(len(tokens), dtype=np.int32), self.lo, self.hi)

    def own_tokens(self) -> NDArray[np.int64]:
        """[n, level] what each beam has emitted, read from the trie."""
        trie = self.question.trie
        nodes = [np.searchsorted(trie.lo[level], self.lo, side="right") - 1 for level in range(self.level)]
        columns = [trie.tokens[level][node] for level, node in enumerate(nodes)]
        return np.array(columns, np.int64).reshape(self.level, len(self.lo)).T.copy()

    @property
    def over(self) -> bool:
        """No level is left, no beam is left, or the model gave no usable number."""
        return self.invalid or self.level == self.question.depth or not len(self.scores)

    def advance(self, scores: Floats, tokens: Ints, parents: Ints, lo: Ints, hi: Ints) -> None:
        """Take the children that a selection kept, best first: all arrays [n], parents index our beams.

        A beam that ran at level l left its KV in tail slot l - 1 of its row; a fork rewrites the ancestor
        table and moves nothing.
        """
        if self.level:
            anc = self.anc[parents]
            if self.level <= anc.shape[1]:
                anc[:, self.level - 1] = self.rows[parents]
        else:
            anc = np.zeros((len(tokens), self.anc.shape[1]), np.int64)
        question = self.question
        passed = last_kept(scores, question.width, question.passes_over(self.level))
        self.ceiling = max(self.ceiling, passed)
        self.anc, self.scores, self.tokens, self.lo, self.hi = anc, scores, tokens, lo, hi
        self.level += 1

    def finish(self, scores: Floats, leaves: Ints, invalid: bool, ceiling: float) -> None:
        """Take the end of a search whose levels ran elsewhere: scores and leaves [n], best first.

        ceiling: the highest last score of a level that passed over some; -inf: none did.
        """
        self.level, self.invalid = self.question.depth, invalid
        self.scores, self.lo = scores, leaves
        self.ceiling = max(self.ceiling, ceiling)

    def answer(self) -> tuple[Ints, Floats]:
        """Leaves and scores [n], best first; empty when nothing was alive."""
        n = self.question.results
        if self.level < self.question.depth:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        return self.lo[:n], self.scores[:n]
