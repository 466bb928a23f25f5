"""Which searches run together on a GPU, and how their beams lie in memory at every level. Plain numbers.

Depth is fixed, so a cohort's whole decode is known before it starts: how many beams each request can have at
each level, and thus which captured graphs run in which order. What filters and scores decide meanwhile
changes which beams live, not where they lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from decode_worker.search import Question

Offsets = NDArray[np.int64]

MAX_REQUESTS = 16  # of a cohort; past about 1,024 rows a larger one gains nothing

ROW_BUCKETS = (64, 128, 192, 256, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096)
"""Rows that a step is captured for. Rounding up is nearly free while a step is bound by weights."""


@dataclass(frozen=True)
class Step:
    """One level of a cohort: a forward over the beams that enter (level 0 needs none), then a selection."""

    level: int
    offsets: Offsets  # [B+1], request b's beams enter in rows [offsets[b], offsets[b+1])
    out_offsets: Offsets  # [B+1], and its children leave in rows [out_offsets[b], out_offsets[b+1])

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])


def plan_steps(questions: Sequence[Question]) -> list[Step]:
    """All levels of a cohort of questions about catalogs of one depth."""
    depth = questions[0].depth
    assert all(question.depth == depth for question in questions), "a cohort has one depth"
    layouts = [
        np.cumsum([0, *(question.beams[level] for question in questions)]) for level in range(depth + 1)
    ]
    return [Step(level, layouts[level], layouts[level + 1]) for level in range(depth)]


class Sized(Protocol):
    """What a question takes of a cohort."""

    @property
    def most_beams(self) -> int: ...
    @property
    def depth(self) -> int: ...


class CohortMember(Protocol):
    """A search, as whoever chooses a cohort sees it."""

    @property
    def question(self) -> Sized: ...


M = TypeVar("M", bound=CohortMember)


def choose_cohort(waiting: Sequence[M], max_rows: int, max_requests: int) -> list[M]:
    """The searches that run together next: the first ones, as far as rows and places go.

    One that does not fit ends the cohort, so that narrow requests do not pass it for ever.
    """
    chosen: list[M] = []
    rows = 0
    for search in waiting[:max_requests]:
        rows += search.question.most_beams
        if rows > max_rows or search.question.depth != waiting[0].question.depth:
            break
        chosen.append(search)
    return chosen


@dataclass(frozen=True)
class StepVectors:
    """What a step's kernels read beside the beams themselves, one entry per row."""

    owner: Offsets  # request of each row, -1 for padding
    positions: Offsets  # of each row's newest token
    tail_len: Offsets  # tail tokens that each row has already

    @staticmethod
    def of(step: Step, questions: Sequence[Question], bucket: int, tail_tokens: int) -> "StepVectors":
        """Padding up to `bucket`: position 0, and so many tail tokens that nothing is stored."""
        counts = np.diff(step.offsets)
        owner = np.full(bucket, -1, np.int64)
        owner[: step.rows] = np.repeat(np.arange(len(questions)), counts)
        positions = np.zeros(bucket, np.int64)
        newest = [question.prompt_tokens + step.level - 1 for question in questions]
        positions[: step.rows] = np.repeat(newest, counts)
        tail_len = np.full(bucket, tail_tokens, np.int64)
        tail_len[: step.rows] = max(0, step.level - 1)
        return StepVectors(owner, positions, tail_len)
