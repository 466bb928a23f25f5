"""Both engines of a GPU in this process, over one pool: what a test runs without any worker around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lab import Lab
from models import DEPTH, Made
from numpy.typing import NDArray
from planned_attention import PlannedAttention
from test_selection import SMALL

from decode_worker.engines.cohort import MAX_REQUESTS
from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.engines.cohort_steps import CohortSteps
from decode_worker.search import Floats, Question, Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cuda import MAX_PROMPTS, TOKEN_BUCKETS, BucketEngine
from xgr_kernels.trie import ScoreMode, no_filter
from xgr_runtime.catalog import CatalogView
from xgr_runtime.kv.pages import PageIds, PagePool, pages_for
from xgr_runtime.model.device_attention import DeviceAttention, MakeAttention, MakeAttentions
from xgr_runtime.model.memory.kv_memory import private_memory
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE = 16  # tokens
TOY_REQUESTS = 2  # of a cohort: places without a request are launched, too
TOY_TUNING = SMALL._replace(programs=1)


class Engines:
    """A loaded model, its pool, and engines that are made when they are asked for."""

    def __init__(self, lab: Lab, made: Made, kv_tokens: int, layers: str = "") -> None:
        self.lab, self.made = lab, made
        self.model = lab.model(made.folder, layers)
        pages = pages_for(kv_tokens, PAGE)
        identity = self.model.identity
        self.pool = KvPool(identity, pages, PAGE, private_memory(identity, pages, PAGE, lab.where))
        # What a prompt that is not computed would hold: random numbers, as real as any.
        for x in (self.pool.k, self.pool.v):
            x.normal_()
        self.pages = PagePool(pages)

    def decode(self, max_rows: int, max_width: int) -> CohortEngine:
        """Captured and warm, on a GPU for as many requests as a worker takes."""
        max_requests = MAX_REQUESTS if self.lab.cuda else TOY_REQUESTS
        max_rows = max(max_rows, max_requests)
        steps = CohortSteps(
            self.model,
            self.pool,
            self.lab.device,
            self.made.trie,
            max_rows,
            max_width,
            self._beam_attention(max_rows, max_requests),
            max_requests=max_requests,
            tuning=None if self.lab.cuda else TOY_TUNING,
        )
        engine = CohortEngine(steps)
        engine.warm_up(self.made.trie)
        return engine

    def prefill(self, max_tokens: int) -> BucketEngine:
        """Captured and warm."""
        if self.lab.cuda:
            max_tokens = max(max_tokens, TOKEN_BUCKETS[0])
        engine = BucketEngine(
            self.model,
            self.pool,
            self.lab.device,
            max_tokens,
            self._prompt_attention(max_tokens),
        )
        engine.warm_up()
        return engine

    def _beam_attention(self, rows: int, requests: int) -> MakeAttentions:
        if self.lab.cuda:
            return DeviceAttention(
                self.model, self.pool, self.lab.device, rows=rows, requests=requests, causal=False
            ).each
        return lambda rows, requests: [PlannedAttention(rows, requests, PAGE, causal=False)]

    def _prompt_attention(self, rows: int) -> MakeAttention:
        if self.lab.cuda:
            return DeviceAttention(
                self.model, self.pool, self.lab.device, rows=rows, requests=MAX_PROMPTS, causal=True
            ).one
        return lambda rows, requests: PlannedAttention(rows, requests, PAGE, causal=True)

    def prompt(self, tokens: int) -> NDArray[np.int32]:
        """Random token ids."""
        return self.lab.random.integers(2, self.model.identity.vocab, tokens).astype(np.int32)

    def allocate(self, tokens: int) -> PageIds:
        ids = self.pages.allocate(pages_for(tokens, PAGE))
        assert ids is not None, "the test asked for too small a pool"
        return ids

    def part(self, tokens: NDArray[np.int32]) -> Part:
        """A whole prompt in pages of its own."""
        return Part(tokens, self.allocate(len(tokens)))

    def search(
        self,
        part: Part,
        hidden: Floats | None,
        width: int,
        results: int,
        mode: ScoreMode = "vocab",
        view: CatalogView | None = None,
    ) -> Search:
        """The search behind a prompt that is in its pages, of a version or of the catalog as it was made."""
        visible = None if view is None else view.visible
        question = Question(
            len(part.tokens),
            int(part.tokens[-1]),
            width,
            results,
            mode,
            self.made.trie if view is None else view.trie,
            visible or no_filter(),
            shared_bits=visible is not None,
        )
        return Search(question, part.pages, np.arange(width, dtype=np.int32), hidden, DEPTH - 2)


def finish(engine: CohortEngine, searches: Sequence[Search]) -> list[Search]:
    """Launch a cohort and wait for its end."""
    engine.launch(searches)
    over: list[Search] = []
    while engine.busy:
        over += engine.collect()
    return over
