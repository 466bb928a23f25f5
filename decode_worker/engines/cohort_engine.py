"""Decode on a GPU: cohorts of searches are queued whole, and nothing is read back before their end.

A cohort is prepared first, which keeps the host busy and not the device, and then queued, behind another that
may still run. On `HostDevice` the same code runs at once.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from decode_worker.engines.cohort import choose_cohort
from decode_worker.engines.cohort_steps import COHORTS, Cohort, CohortSteps
from decode_worker.phases import TaskPhase
from decode_worker.search import PLAIN_MODES, Question, Search
from xgr_kernels.trie import LeafFilter, Trie, no_filter
from xgr_runtime.catalog import CatalogView
from xgr_runtime.model.device.device import losing_the_device
from xgr_runtime.scheduling.cost_model import CostModel, Tried, together

log = logging.getLogger(__name__)


class CohortEngine:
    """The engine of a GPU: the cohorts in flight. Searches start and end here as a whole."""

    def __init__(self, steps: CohortSteps) -> None:
        self.steps = steps
        self.pool = steps.pool
        self.device = steps.device
        self.tail_tokens = steps.tail_tokens
        self.counters: dict[str, float] = defaultdict(float)
        self._flying: deque[Cohort] = deque()
        self._prepared: Cohort | None = None  # in a place that no cohort in flight has
        self._started: dict[Cohort, float] = {}
        self._overflown: list[Search] = []
        self.costs = CostModel()
        self._idle_since = 0.0  # when the last cohort that we know of ended

    @property
    def ready(self) -> bool:
        """Whether another cohort may be queued. Not while some wait for the exact way, which needs all."""
        return len(self._flying) < COHORTS and not self._overflown

    @property
    def busy(self) -> bool:
        """Whether `collect` will have something without a further launch."""
        return bool(self._flying or self._overflown)

    @property
    def row_budget(self) -> int:
        """See `DecodeEngine`: those of the cohorts in flight, and of one that waits."""
        return (COHORTS + 1) * self.steps.max_rows

    def choose(self, waiting: Sequence[Search]) -> list[Search]:
        """See `DecodeEngine`: the next cohort."""
        return choose_cohort(waiting, self.steps.max_rows, self.steps.max_requests)

    def prepare(self, searches: Sequence[Search]) -> None:
        """See `DecodeEngine`; `searches` are a cohort that `choose` gave."""
        assert self.ready, "one cohort runs and one waits"
        if self._prepared is None or [*self._prepared.searches] != [*searches]:
            taken = {cohort.place for cohort in self._flying}
            self._prepare(searches, next(place for place in range(COHORTS) if place not in taken))

    def launch(self, searches: Sequence[Search], on_layer: Callable[[int], None] | None = None) -> None:
        """Queue all levels of `searches`, a cohort that `choose` gave."""
        self.prepare(searches)
        self._queue_prepared()
        for search in searches:
            search.phase = TaskPhase.IN_FLIGHT

    def collect(self) -> list[Search]:
        """See `DecodeEngine`."""
        over: list[Search] = []
        with losing_the_device():
            ended: list[Cohort] = []
            while self._flying and self._flying[0].finished.done():
                ended.append(self._flying.popleft())
            for cohort in ended:  # of several, nobody saw when each ended
                over += self._take(cohort, timed=len(ended) == 1)
        if self._overflown and not self._flying:
            over += self._search_exactly()
        return over

    def place(self, view: CatalogView, ready: Sequence[LeafFilter]) -> bool:
        """See `DecodeEngine`. The trie goes to the device piece by piece, filters at once."""
        with losing_the_device():
            if not self.steps.catalogs.place(view.trie):
                return False
            for leaves in ready:
                self.steps.bits.of(leaves)
        return True

    def keep(self, views: Sequence[CatalogView]) -> None:
        """See `DecodeEngine`."""
        self.steps.catalogs.keep([view.trie for view in views])

    def warm_up(self, trie: Trie) -> None:
        """Capture every step, and run one small search in each score mode."""
        self.device.settle()  # memory was filled, and weights were loaded, outside of the queue
        before = self.device.reserved_bytes()
        with self.device.running(), torch.inference_mode():
            self.steps.capture()
        taken = (self.device.reserved_bytes() - before) / 2**20
        log.info("captured steps of %s rows, %.0f MiB", ", ".join(map(str, self.steps.buckets)), taken)
        pages, hidden = np.zeros(1, np.int32), np.zeros(self.steps.model.identity.hidden, np.float32)
        width = min(8, trie.leaves, self.steps.max_width)
        for mode in PLAIN_MODES:
            question = Question(1, 0, width, 1, mode, trie, no_filter())
            self.launch([Search(question, pages, pages, hidden, self.tail_tokens)])
            self._flying[0].finished.wait()
            self.collect()

    def try_searches(self, trie: Trie) -> list[Tried]:
        """See `DecodeEngine`. The first cohorts tell."""
        return []

    def _prepare(self, searches: Sequence[Search], place: int) -> None:
        """The cohort of these, and no other, is prepared."""
        self._prepared = None
        cohort = Cohort(searches, place, self.device.event())
        with losing_the_device(), self.device.running(), torch.inference_mode():
            self.steps.prepare(cohort)
        self._prepared = cohort

    def _queue_prepared(self, exactly: bool = False) -> Cohort:
        """All levels of the cohort that is prepared, behind those that are queued."""
        cohort, self._prepared = self._prepared, None
        assert cohort is not None, "a cohort is prepared before it is queued"
        started = time.monotonic()
        with losing_the_device(), self.device.running(), torch.inference_mode():
            self.steps.enqueue(cohort, exactly)
        self._started[cohort] = started
        self._flying.append(cohort)
        return cohort

    def _take(self, cohort: Cohort, timed: bool) -> list[Search]:
        """Give every search its answer; those whose candidates overflowed are kept for the exact way."""
        now, started = time.monotonic(), self._started.pop(cohort)
        seconds = now - started
        work = together(question.work_from[0] for question in cohort.questions)
        waited_until = max(started, self._idle_since)  # for the cohort before
        if timed:
            self.costs.observe(work._replace(launches=len(cohort.steps)), now - waited_until)
        self._idle_since = now
        over: list[Search] = []
        for search, answer in zip(cohort.searches, self.steps.answers(cohort), strict=True):
            search.forward_seconds += seconds
            if answer.overflow:
                self._overflown.append(search)
            else:
                search.finish(answer.scores, answer.leaves, answer.invalid, answer.ceiling)
                search.phase = TaskPhase.OVER
                over.append(search)
        self.counters["steps"] += len(cohort.steps)
        self.counters["rows"] += sum(step.rows for step in cohort.steps)
        return over

    def _search_exactly(self) -> list[Search]:
        """Searches whose candidates did not fit, one at a time, with as many rounds as each level takes."""
        searches, self._overflown = self._overflown, []
        self.counters["selection_overflows"] += len(searches)
        over: list[Search] = []
        for search in searches:
            self._prepare([search], 0)
            cohort = self._queue_prepared(exactly=True)
            with losing_the_device():
                cohort.finished.wait()
            self._flying.popleft()
            over += self._take(cohort, timed=True)
        return over
