"""The engine of a CPU: one level of all searches at a time."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from decode_worker.engines.adjusted_rows import adjust
from decode_worker.phases import TaskPhase
from decode_worker.scheduler import share_step
from decode_worker.search import PLAIN_MODES, Question, Search
from decode_worker.trials import try_searches
from xgr_kernels.attention import flash
from xgr_kernels.attention.shared.api import SharedPlan
from xgr_kernels.beam_select.api import BeamBatch, Selection, beam_select, warm_up
from xgr_kernels.trie import LeafFilter, Trie, no_filter
from xgr_runtime.catalog import CatalogView
from xgr_runtime.model.base import DTYPES, ModelBackend
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.stages import CascadeStage
from xgr_runtime.scheduling.cost_model import CostModel, Tried, together


class CpuDecodeEngine:
    """The model, the pool of received KV and the tail KV. Requests at different levels share a step."""

    ready = True

    def __init__(
        self, model: ModelBackend, pool: KvPool, tail_tokens: int, max_rows: int, kernels: str
    ) -> None:
        self.model = model
        self.pool = pool
        self.tail_tokens = tail_tokens
        self.max_rows = max_rows
        self.tail = TailKv(model.identity, tail_tokens, max_rows)
        self.kernels = kernels
        self.counters: dict[str, float] = defaultdict(float)
        self.costs = CostModel()
        self._over: list[Search] = []

    @property
    def row_budget(self) -> int:
        """See `DecodeEngine`."""
        return self.max_rows

    @property
    def busy(self) -> bool:
        """See `DecodeEngine`."""
        return bool(self._over)

    def choose(self, waiting: Sequence[Search]) -> list[Search]:
        """So many that a step's fixed cost is a small share of it: in a step, all wait for all."""
        return share_step(waiting, self.costs.cost)

    def prepare(self, searches: Sequence[Search]) -> None:
        """See `DecodeEngine`. There is nothing to plan."""

    def launch(self, searches: Sequence[Search], on_layer: Callable[[int], None] | None = None) -> None:
        """One step; returns when it is done."""
        rows = sum(len(search.scores) for search in searches)
        work, started = together(search.next_work for search in searches), time.monotonic()
        for search in searches:
            search.phase = TaskPhase.IN_FLIGHT
        try:
            selection = self.step(searches, on_layer)
        finally:
            for search in searches:
                search.phase = TaskPhase.OVER if search.over else TaskPhase.SEARCH
        self.costs.observe(work, time.monotonic() - started)
        self._over += [search for search in searches if search.over]
        self.counters["steps"] += 1
        self.counters["rows"] += rows
        if selection is not None:
            self.counters["rows_skipped"] += int(selection.rows_skipped.sum())
            self.counters["elements_visited"] += int(selection.elements_visited.sum())
            self.counters["elements_total"] += int(selection.elements_total.sum())

    def collect(self) -> list[Search]:
        """See `DecodeEngine`."""
        over, self._over = self._over, []
        return over

    def place(self, view: CatalogView, ready: Sequence[LeafFilter]) -> bool:
        """See `DecodeEngine`. Searches read a version where it is."""
        return True

    def keep(self, views: Sequence[CatalogView]) -> None:
        """See `DecodeEngine`."""

    def warm_up(self, trie: Trie) -> None:
        """Compile the kernels and run one small search, so that no request pays for first-use costs."""
        warm_up()
        flash.warm_up(DTYPES[self.model.identity.dtype])  # the search may be too narrow to need it
        hidden = np.zeros(self.model.identity.hidden, np.float32)
        rows = np.arange(min(8, trie.leaves, self.max_rows), dtype=np.int32)
        for mode in PLAIN_MODES:
            question = Question(1, 0, len(rows), 1, mode, trie, no_filter())
            search = Search(question, np.zeros(1, np.int32), rows, hidden, self.tail_tokens)
            while not search.over:
                self.step([search])

    def try_searches(self, trie: Trie) -> list[Tried]:
        """See `DecodeEngine`."""
        return try_searches(self, trie)

    def step(
        self, searches: Sequence[Search], on_layer: Callable[[int], None] | None = None
    ) -> Selection | None:
        """Advance every search by one level; returns the selection, if there was one, for its statistics.

        `on_layer` is called between the layers of the forward.
        """
        started = time.monotonic()
        running = [s for s in searches if s.forward_rows]
        given = [s for s in searches if not s.forward_rows and not s.silent]
        silent, choosing = [s for s in searches if s.silent], given + [s for s in running if not s.silent]
        hidden = [torch.from_numpy(s.hidden)[None] for s in given]
        if running:
            hidden.append(_of_choosing(self.forward(running, on_layer), running).float())
        logits = self.model.logits(torch.cat(hidden)) if choosing else None  # [R, V]
        seconds = time.monotonic() - started
        for search in searches:
            search.forward_seconds += seconds
        for search in silent:
            search.pass_silently()
        return None if logits is None else self.select(choosing, logits)

    def forward(self, searches: Sequence[Search], on_layer: Callable[[int], None] | None) -> Tensor:
        """The newest token of every beam through the layers -> [R, hidden]."""
        counts = np.array([s.forward_rows for s in searches])
        plan = SharedPlan(
            row_offsets=[0, *np.cumsum(counts).tolist()],
            pages=[s.pages for s in searches],
            lengths=[s.shared_tokens for s in searches],
            page_size=self.pool.page_size,
        )
        stage = CascadeStage(
            self.pool,
            plan,
            self.tail.k,
            self.tail.v,
            anc=torch.from_numpy(np.concatenate([s.anc for s in searches])),
            rows=_int64(np.concatenate([s.rows[: s.forward_rows] for s in searches])),
            tail_len=_int64(np.repeat([s.tail_len for s in searches], counts)),
            backend=self.kernels,
            on_layer=on_layer,
        )
        tokens = _int64(np.concatenate([s.tokens for s in searches]))
        positions = _int64(np.repeat([s.position for s in searches], counts))
        return self.model.forward(tokens, positions, stage)

    def select(self, searches: Sequence[Search], logits: Tensor) -> Selection:
        """Choose every search's next beams from the logits [R, V] of its present ones."""
        batch = BeamBatch(
            row_offsets=[0, *np.cumsum([len(s.scores) for s in searches]).tolist()],
            level=[s.level for s in searches],
            width=[s.question.width for s in searches],
            tries=[s.question.trie for s in searches],
            filters=[s.question.filter for s in searches],
            normalisers=[s.question.normaliser(s.level) for s in searches],
            scores=np.concatenate([s.scores for s in searches]),
            lo=np.concatenate([s.lo for s in searches]),
            hi=np.concatenate([s.hi for s in searches]),
        )
        chosen = beam_select(logits, adjust(searches, logits, batch), self.kernels)
        for b, search in enumerate(searches):
            at = chosen.of(b)
            search.invalid = bool(chosen.invalid[b])
            search.advance(
                chosen.score[at], chosen.token[at], chosen.parent[at], chosen.lo[at], chosen.hi[at]
            )
        return chosen


def _of_choosing(hidden: Tensor, searches: Sequence[Search]) -> Tensor:
    """The rows [R, hidden] of searches that choose among children: others' newest tokens only leave KV."""
    if not any(search.silent for search in searches):
        return hidden
    choosing = np.repeat([not s.silent for s in searches], [s.forward_rows for s in searches])
    return hidden[torch.from_numpy(choosing)]


def _int64(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
