"""What a score is made of: tokens around every SID that the search emits, how log-probabilities are taken.

Some models were trained, and are evaluated, on more than the tokens of a SID: an end token behind it, say,
whose log-probability is part of the score. Such tokens are forced (there is one choice), and no history shows
them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from xgr_kernels.trie import ScoreMode
from xgr_runtime.catalog.vocabulary import MAX_TOKEN
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from xgr_runtime.catalog.vocabulary import Vocabulary

MAX_LEVELS = 12  # of a search: SID and forced tokens
MOST_PENALTY = 10.0


class Forced(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A token that every SID has, before or behind it. Not scored, it adds exactly 0."""

    token: int
    scored: bool = True


class Scoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Part of every catalog. What a request names itself counts before the defaults for it in here."""

    head: tuple[Forced, ...] = ()  # before the SID
    tail: tuple[Forced, ...] = ()  # behind it
    length_penalty: float = 1.0  # sequence_score = cumulative_logprob / emitted tokens ** length_penalty
    score_mode: ScoreMode = "vocab"
    repetition_penalty: float = 1.0
    level_tokens: tuple[tuple[int, int], ...] = ()  # first and last token of each level's codebook
    renormalize: bool = False  # after a penalty: what it leaves are log-probabilities again

    @property
    def plain(self) -> bool:
        """Whether its defaults are what a search on a GPU has: no level's softmax and no penalty."""
        return self.score_mode != "level" and self.repetition_penalty == 1

    @property
    def prompt_head(self) -> tuple[int, ...]:
        """Tokens at the end of every prompt: those of the head before any that is scored."""
        return tuple(forced.token for forced in self.head[: len(self.head) - len(self.emitted_head)])

    @property
    def emitted_head(self) -> tuple[Forced, ...]:
        """Of the head, what the search emits."""
        first = next((i for i, forced in enumerate(self.head) if forced.scored), len(self.head))
        return self.head[first:]

    @property
    def emitted_tail(self) -> tuple[Forced, ...]:
        """Of the tail, what the search emits: nothing behind the last that is scored matters."""
        end = max((i + 1 for i, forced in enumerate(self.tail) if forced.scored), default=0)
        return self.tail[:end]

    @property
    def forced(self) -> int:
        """Tokens that the search emits besides those of a SID."""
        return len(self.emitted_head) + len(self.emitted_tail)

    @property
    def max_token(self) -> int:
        """The largest token id in here, -1 without any."""
        ends = [last for _, last in self.level_tokens]
        return max([forced.token for forced in (*self.head, *self.tail)] + ends, default=-1)

    def problem(self, depth: int) -> str | None:
        """What cannot be meant with SIDs of `depth` tokens; it may come from a file."""
        tokens = [forced.token for forced in (*self.head, *self.tail)]
        ranges = [*self.level_tokens]
        if not all(0 <= token <= MAX_TOKEN for token in tokens):
            return "scoring holds an impossible token"
        if depth + len(tokens) > MAX_LEVELS:
            return (
                f"head, SID and tail have {depth + len(tokens)} tokens: they may have {MAX_LEVELS} together"
            )
        if not 0 < self.repetition_penalty <= MOST_PENALTY:
            return f"repetition_penalty is {self.repetition_penalty}: it must be above 0 and at most 10"
        if not abs(self.length_penalty) <= MOST_PENALTY:
            return f"length_penalty is {self.length_penalty}: it must be within -10 and 10"
        if ranges and len(ranges) != depth:
            return (
                f"level_tokens has {len(ranges)} levels, SIDs have {depth}: name each level's first and last"
            )
        wrong = [pair for pair in ranges if not 0 <= pair[0] <= pair[1] <= MAX_TOKEN]
        if wrong:
            return f"level_tokens holds {list(wrong[0])}: write a level's first and last token"
        for one, other in itertools.combinations(ranges, 2):
            if one != other and one[0] <= other[1] and other[0] <= one[1]:
                return (
                    f"level_tokens holds {list(one)} and {list(other)}, which share tokens: two levels "
                    "have the same codebook or nothing in common; correct it"
                )
        return None


NEUTRAL = Scoring()


class _WrittenToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str | int
    scored: bool = True


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`scoring` as catalog.json has it: tokens by their text, or ids."""

    head: tuple[str | int | _WrittenToken, ...] = ()
    tail: tuple[str | int | _WrittenToken, ...] = ()
    length_penalty: float = 1.0
    score_mode: ScoreMode = "vocab"
    repetition_penalty: float = 1.0
    renormalize: bool = False
    level_tokens: tuple[tuple[str | int, str | int], ...] = ()


def read_scoring(
    fields: Mapping[str, Any], path: Path, sids: NDArray[np.int32], vocabulary: Vocabulary
) -> Scoring:
    """`scoring` of catalog.json, which `path` names, for SIDs [N, depth]. Raises CatalogError."""
    try:
        written = msgspec.convert(fields.get("scoring", {}), _Written)
    except msgspec.ValidationError as error:
        raise CatalogError(f"{path}: scoring: {error}: correct it") from error
    scoring = Scoring(
        head=_resolved(path, "head", written.head, vocabulary),
        tail=_resolved(path, "tail", written.tail, vocabulary),
        length_penalty=written.length_penalty,
        score_mode=written.score_mode,
        repetition_penalty=written.repetition_penalty,
        renormalize=written.renormalize,
        level_tokens=tuple(
            (
                _token(path, "level_tokens", first, vocabulary),
                _token(path, "level_tokens", last, vocabulary),
            )
            for first, last in written.level_tokens
        ),
    )
    problem = scoring.problem(sids.shape[1]) or _beside_sids(scoring, sids)
    if problem:
        raise CatalogError(f"{path}: scoring: {problem}")
    return scoring


def check_prompt_end(scoring: Scoring, end: Sequence[int], path: Path) -> None:
    """Raises CatalogError where prompts, which end in the tokens `end`, already hold the head's first."""
    head = [forced.token for forced in scoring.head]
    if shared := shared_end(end, head):
        raise CatalogError(
            f"{path}: scoring: prompts already end in {head[:shared]}, with which the head begins: it would "
            "come twice; leave it out of one of the two"
        )


def _resolved(
    path: Path, name: str, tokens: Sequence[str | int | _WrittenToken], vocabulary: Vocabulary
) -> tuple[Forced, ...]:
    named = [token if isinstance(token, _WrittenToken) else _WrittenToken(token) for token in tokens]
    return tuple(Forced(_token(path, name, one.token, vocabulary), one.scored) for one in named)


def _token(path: Path, name: str, token: str | int, vocabulary: Vocabulary) -> int:
    try:
        return vocabulary.resolve(token)
    except CatalogError as error:
        raise CatalogError(f"{path}: scoring: {name}: {error}") from error


def _beside_sids(scoring: Scoring, sids: NDArray[np.int32]) -> str | None:
    """What does not go with these SIDs [N, depth]."""
    for level, (first, last) in enumerate(scoring.level_tokens):
        lowest, highest = int(sids[:, level].min()), int(sids[:, level].max())
        if lowest < first or highest > last:
            return (
                f"level_tokens says {first} to {last} of level {level}, SIDs have {lowest} to {highest} "
                "there: correct it"
            )
    if (sids == sids[0]).all():
        return None  # of one SID, nothing tells what is its own
    same = (sids == sids[0]).all(axis=0)  # [depth]
    ends = sids[0, len(same) - _run(same[::-1]) :].tolist()
    begins = sids[0, : _run(same)].tolist()
    tail, head = ([forced.token for forced in some] for some in (scoring.tail, scoring.head))
    if shared := shared_end(ends, tail):
        return (
            f"all SIDs end in {tail[:shared]}, with which the tail begins: it would be scored twice; "
            "leave it out of the tail or of the SIDs"
        )
    own = {int(token) for level in np.flatnonzero(~same) for token in np.unique(sids[:, level])}
    for name, tokens in (("head", head), ("tail", tail)):
        if shared_tokens := own.intersection(tokens):
            return (
                f"{name} holds the token {min(shared_tokens)}, one of those by which SIDs differ: name what "
                "stands around SIDs"
            )
    if shared := shared_end(head, begins):
        return (
            f"all SIDs begin with {begins[:shared]}, in which the head ends: it would be scored twice; "
            "leave it out of the head or of the SIDs"
        )
    return None


def _run(same: NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(same) if same.all() else int(np.argmin(same))


def shared_end(ends: Sequence[int], begins: Sequence[int]) -> int:
    """The most tokens with which one ends and the other begins."""
    most = min(len(ends), len(begins))
    return next((n for n in range(most, 0, -1) if [*ends[-n:]] == [*begins[:n]]), 0)
