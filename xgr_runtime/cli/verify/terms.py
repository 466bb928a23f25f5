"""What a beam of the other side means: which of its tokens are the SID, and what its score is a sum of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.wire.answers import BeamMeta

Sid: TypeAlias = tuple[int, ...]
Ranked: TypeAlias = "list[tuple[Sid, float | None]]"

SEQUENCE, SUM = "sequence_score", "sum"


@dataclass(frozen=True)
class Terms:
    """depth: tokens of an SID; head, tail: what is generated around it; score: see `check_score`."""

    depth: int
    head: Sid = ()
    tail: Sid = ()
    score: str = SEQUENCE

    def sid(self, tokens: Sequence[int]) -> Sid | None:
        """The SID in the tokens of a beam, None where they are not head, SID and tail.

        A bare SID will do; so will an end that was filled up with one token, as `generate` does.
        """
        rest = list(tokens)
        if len(rest) != self.depth:
            if tuple(rest[: len(self.head)]) != self.head:
                return None
            rest = rest[len(self.head) :]
        sid, behind = tuple(rest[: self.depth]), rest[self.depth :]
        padding = behind[len(self.tail) :]
        whole = tuple(behind[: len(self.tail)]) == self.tail and len(set(padding)) <= 1
        return sid if len(sid) == self.depth and (not behind or whole) else None

    def of(self, meta: BeamMeta) -> float:
        """The score of one of our results, as the other side counts."""
        if self.score == SEQUENCE:
            return meta.sequence_score
        return meta.cumulative_logprob / (1 if self.score == SUM else int(self.score.split("/")[1]))


def check_score(text: str, setting: str) -> str:
    """`sequence_score`, `sum` or `sum / N`. Raises ConfigError naming `setting`."""
    if text in (SEQUENCE, SUM) or re.fullmatch(r"sum ?/ ?[1-9][0-9]{0,2}", text):
        return text
    raise ConfigError(f"{setting} is {text!r:.80}: choose from {SEQUENCE}, {SUM}, or {SUM} / N")
