"""Searches that are tried at the start, so that the first requests already find out what theirs will take."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from decode_worker.search import Question, Search
from xgr_kernels.beam_select.api import Selection
from xgr_kernels.trie import Trie, no_filter
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.scheduling.cost_model import Tried

SIZES = ((64, 256), (256, 1024))  # beams and tokens of the prompt
SECONDS = 1.0  # after which nothing more is tried: a large model gets through a few steps


class StepEngine(Protocol):
    """One that runs a level at a time."""

    model: ModelBackend
    pool: KvPool
    tail_tokens: int
    max_rows: int

    def step(self, searches: Sequence[Search]) -> Selection | None: ...


def try_searches(engine: StepEngine, trie: Trie, clock: Callable[[], float] = time.monotonic) -> list[Tried]:
    """Steps of searches that are alone, the narrow ones first. They read pages that nobody has."""
    positions = min(engine.pool.pages * engine.pool.page_size, engine.model.max_positions)
    until, tried = clock() + SECONDS, list[Tried]()
    for beams, tokens in SIZES:
        if tokens + len(trie.tokens) <= positions:
            search = _search(engine, trie, min(beams, trie.leaves, engine.max_rows), tokens)
            while not search.over and clock() < until:
                tried.append(_step(engine, search, clock))
    return tried


def _search(engine: StepEngine, trie: Trie, width: int, tokens: int) -> Search:
    """One over a prompt of zeros, from a hidden state that favours some children."""
    question = Question(tokens, 0, width, 1, "vocab", trie, no_filter())
    pages = np.arange(-(-tokens // engine.pool.page_size), dtype=np.int32)
    hidden = np.random.default_rng(0).standard_normal(engine.model.identity.hidden, np.float32)
    rows = np.arange(question.most_beams, dtype=np.int32)
    return Search(question, pages, rows, hidden, engine.tail_tokens)


def _step(engine: StepEngine, search: Search, clock: Callable[[], float]) -> Tried:
    work, started = search.next_work, clock()
    engine.step([search])
    return Tried(work, clock() - started)
