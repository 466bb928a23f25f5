"""The decode worker's loop: step all beams together, answer. Prompts come in by `Inbound`."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from decode_worker.catalogs import CatalogUpdates
from decode_worker.conditions import Conditions
from decode_worker.engines.base import DecodeEngine
from decode_worker.engines.launches import LaunchSpan
from decode_worker.inbound import Inbound
from decode_worker.phases import TaskPhase
from decode_worker.scheduler import DecodeScheduler
from decode_worker.search import Search
from decode_worker.task import DecodeTask, TaskFactory
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import (
    DeadlineExceeded,
    InvalidLogits,
    Overloaded,
    Preempted,
    RequestError,
    WorkerLost,
)
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache
from xgr_runtime.scheduling.cost_model import Tried
from xgr_runtime.scheduling.queue import is_batch, of_first_class, urgency
from xgr_runtime.transport import Listener, Poller, told_address
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.arrays import float32s, pack
from xgr_runtime.wire.messages import (
    LAUNCHES,
    MOST_VERSIONS,
    PROTOCOL,
    ROWS_TOTAL,
    WAITING_SECONDS,
    AttemptId,
    Committed,
    DecodeRequest,
    Limits,
    Load,
    Message,
    ModelIdentity,
    Result,
    ToDecode,
    WorkerHello,
)
from xgr_runtime.worker.desk import Desk
from xgr_runtime.worker.device_turns import DECODE_SIDE, LOOK_EVERY, turn_for_trials, turns_of
from xgr_runtime.worker.known_costs import KnownCosts

log = logging.getLogger(__name__)

_COPY_WAIT = 0.001  # seconds until copies that a COMMIT waits for are looked at again
_LAST_WORDS = 0.2  # seconds for the last answers to leave: what a socket still holds ends with its process


class DecodeWorker:
    """Owns beams and received KV, from GRANT until the answer or an abort."""

    def __init__(
        self,
        config: DecodeConfig,
        engine: DecodeEngine,
        catalogs: Catalogs,
        identity: ModelIdentity,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        keys: Keyring | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.catalogs = catalogs
        first = catalogs.newest.catalog
        self.emitted_tokens = first.emitted_tokens  # of every version that can be searched here
        self.identity = identity
        self.factory = TaskFactory(catalogs, identity, limits)
        self.limits = limits
        self.data_address = told_address(config.advertise_data_address or config.data_address, keys)
        self.clock = clock
        self.known_costs = KnownCosts(engine.costs)
        self.device_turns = turns_of(config.turns_file, DECODE_SIDE, config.device)
        self.turn_taken = False  # by another worker, when we asked last
        self.searching: dict[AttemptId, DecodeTask] = {}  # from COMMIT to the answer
        self.ended_at = 0.0  # the last task
        self.worked = (
            False  # the last turn ran searches: pages, rows or messages may have come free meanwhile
        )
        pages = PagePool(0 if config.memory_of else engine.pool.pages)
        self.cache = PromptCache.bounded(pages, config.page_size, config.cache_bytes, identity.token_bytes)
        self.scheduler: DecodeScheduler[DecodeTask] = DecodeScheduler(self.cache, PagePool(engine.row_budget))
        control: Listener[Message] = Listener(config.control_address, ToDecode, keys=keys)
        self.desk = Desk(self, "decode", DecodeRequest, control, config.silence)
        self.timeline, self.counters = self.desk.timeline, self.desk.counters
        self.inbound = Inbound(config, identity, engine.pool, self.scheduler, self.desk, clock, keys)
        self.conditions = Conditions(catalogs)
        self.updates = CatalogUpdates(
            catalogs,
            self.desk.control,
            self.cannot_search,
            self.counters,
            engine,
            config.kv_transfer == "auto",
        )
        self.desk.versions = self.updates.take
        self.poller = Poller()
        self.poller.add(control)
        self.poller.add(self.inbound.data.listener)
        self.poller.add(self.conditions.aside.wakeup)
        self.poller.add(self.updates.aside.wakeup)
        if self.device_turns.wakeup is not None:
            self.poller.add(self.device_turns.wakeup)

    def warm_up(self) -> None:
        """Pay all first-use costs before the first request."""
        self.engine.warm_up(self.catalogs.newest.trie)

    def learn_costs(
        self, cache: Path | None, how: Sequence[str], tried: Sequence[Tried] | None = None
    ) -> None:
        """Try some searches, where that is cheap, and recall what others took. `how`: see `KnownCosts.of`.

        `tried`: searches that were tried before, in the place of those.
        """
        self.known_costs = KnownCosts.of(self.engine.costs, self.config, self.identity, cache, how)
        if self.engine.costs.seen:
            return  # from searches of requests, when this process took beams before
        if tried is None:
            with turn_for_trials(self.device_turns):
                tried = self.engine.try_searches(self.catalogs.newest.trie)
        self.known_costs.begin(tried)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Messages in, searches on, answers out; until `stopping`."""
        while not stopping():
            self.poller.wait(self.idle_seconds())
            now = self.clock()
            self.desk.listen(now)
            self.desk.handle(now)
            self.take_over(self.inbound.receive())
            self.updates.turn(now)
            self.expect_known()
            self.expire(now)
            self.inbound.grant_pages(now)
            self.take_over(self.inbound.settle(self.clock()))
            self.start_searches(now)
            self.worked = bool(self.running) or self.engine.busy
            self.launch()
            self.answer_finished()
            self.known_costs.keep_now_and_then(self.clock())
        self.known_costs.keep()
        self.conditions.close()
        self.updates.close()

    def close(self) -> None:
        """Listen no more, behind `run`: another worker of this process may listen there."""
        self.desk.control.listener.withdraw()
        self.inbound.data.listener.withdraw()
        self.device_turns.close()

    def launch(self) -> None:
        """Hand the engine what may run next: a step of all searches, or a cohort of some."""
        self.turn_taken = False
        running = [task for task in self.running if task.phase is TaskPhase.SEARCH]
        first = of_first_class(sorted(running, key=urgency))
        waiting = [task.search for task in first if task.search]
        if not waiting:
            self.device_turns.forget()
        if not waiting or not self.engine.ready or self.leaves_the_device():
            return
        searches = self.engine.choose(waiting)
        self.device_turns.want()
        self.prepare(searches)
        self.turn_taken = not self.device_turns.try_take()
        if self.turn_taken:
            return
        launch = LaunchSpan(searches, self.clock())
        try:
            self.engine.launch(searches, on_layer=lambda _: self.between_layers())
        except Exception:
            log.exception("a launch of %d requests failed: each is tried alone", len(searches))
            self.launch_alone(searches)
        launch.record(self.timeline, self.clock())

    def leaves_the_device(self) -> bool:
        """Whether it goes to another worker, who waits for it, after what is queued."""
        return self.engine.busy and self.device_turns.wanted()

    def prepare(self, searches: Sequence[Search]) -> None:
        """Before the device is ours: a turn in which the host plans is lost for the other worker, too."""
        with contextlib.suppress(Exception):  # their launch meets it again, and finds out whose it is
            self.engine.prepare(searches)

    def launch_alone(self, searches: Sequence[Search]) -> None:
        """Find out whose launch fails: only that request ends. What the failed one did finish is over."""
        for task in [t for t in self.running if t.search in searches and t.phase is TaskPhase.SEARCH]:
            assert task.search is not None
            while not self.engine.ready:
                self.answer_finished()
            try:
                self.engine.launch([task.search])
            except Exception:
                log.exception("request %d failed", task.id.request)
                self.fail(task.id, self.desk.bug())
            self.answer_finished()

    def answer_finished(self) -> None:
        """Answer the searches that are over; those whose request ended meanwhile only give back."""
        self.engine.collect()
        if not self.engine.busy:
            self.device_turns.give()
        for task in self.scheduler.landed():
            self.inbound.release(task)
        for task in [t for t in self.running if t.phase is TaskPhase.OVER]:
            if not task.goes_on():
                self.answer(task)

    def answer(self, task: DecodeTask) -> None:
        """Send the result of a search that is over, or the error that ended it."""
        assert task.search is not None
        if task.search.invalid:
            self.fail(task.id, InvalidLogits("the model returned NaN or infinity for this request"))
            return
        leaves, scores = task.answer()
        timing, ceiling = task.timing(self.clock()), task.search.ceiling
        result = Result(task.id, pack(leaves), pack(scores), timing, task.cached_tokens, ceiling)
        self.scheduler.keep(task)  # its beams have read all KV, and were finite
        self.end(task)
        self.counters["answered"] += 1
        self.desk.control.send(task.id.router, result)

    def end(self, task: DecodeTask) -> None:
        """A search is over, or wanted no more: free what it holds, once no launch reads it."""
        del self.searching[task.id]
        self.ended_at = self.clock()
        task.record(self.timeline, self.ended_at)
        if self.scheduler.leave(task):
            self.inbound.release(task)

    # --- requests, as they come in at the desk ---

    def between_layers(self) -> None:
        """A launch may be long: heartbeats are answered, and KV goes on coming in, of prompts beside it.

        Versions of the catalog are taken in: searches that run read those that they lease.
        """
        if self.desk.deaf(self.clock()):
            self.desk.listen(self.clock())
            if self.desk.take_versions(self.clock()):
                self.updates.turn(self.clock())
            self.take_over(self.inbound.receive())

    def holds(self, id: AttemptId) -> bool:
        """See `Holder`."""
        return id in self.inbound.arriving or id in self.searching or id in self.conditions

    def accept(self, request: DecodeRequest, now: float) -> None:
        """See `Holder`. Raises `Overloaded`, `BadRequest`."""
        held = len(self.tasks) + len(self.conditions)
        if held >= self.config.max_queued // (2 if is_batch(request.priority) else 1):
            raise Overloaded(f"decode worker {self.config.name} holds {held} requests")
        if self.inbound.memories.orphaned:
            raise Overloaded(f"decode worker {self.config.name} starts again")
        if not self.conditions.hold(request, now):
            self.inbound.expect(self.factory.make(request, now))

    def expect_known(self) -> None:
        """Requests whose condition is evaluated by now."""
        for request, arrived in self.conditions.done():
            try:
                self.inbound.expect(self.factory.make(request, arrived))
            except RequestError as error:
                self.fail(request.id, error)
            except Exception:
                log.exception("request %d could not be taken", request.id.request)
                self.fail(request.id, self.desk.bug())

    def cancel(self, id: AttemptId) -> None:
        """See `Holder`."""
        self.drop(id, "cancelled by the router")

    def fail(self, id: AttemptId, error: RequestError) -> None:
        """See `Holder`."""
        self.drop(id, error.message)
        self.desk.report(id, error)

    def drop(self, id: AttemptId, reason: str) -> None:
        """End an attempt without a word to its router; one that is unknown may still come."""
        self.conditions.drop(id)
        if id in self.searching:
            self.end(self.searching[id])
        else:
            self.inbound.end(id, reason)

    def part_with(self, router: int, error: RequestError) -> None:
        """See `Holder`."""
        for id in [*(task.id for task in self.tasks), *self.conditions.ids]:
            if id.router == router:
                self.fail(id, error)

    # --- searches ---

    @property
    def tasks(self) -> list[DecodeTask]:
        """All that are not over."""
        return [*self.inbound.arriving.values(), *self.searching.values()]

    @property
    def running(self) -> list[DecodeTask]:
        """Those that have rows."""
        return [task for task in self.searching.values() if task.search]

    def take_over(self, tasks: Sequence[DecodeTask]) -> None:
        """Prompts are here. What goes wrong with one ends its request and no other."""
        for task in tasks:
            self.searching[task.id] = task
            try:
                self.arrived(task)
            except Exception:
                log.exception("request %d could not be taken over", task.id.request)
                self.fail(task.id, self.desk.bug())

    def arrived(self, task: DecodeTask) -> None:
        """A prompt is here: its search may start.

        Without a hidden state nothing shows yet that its KV is finite, as all that is shared must be.
        """
        if task.hidden is not None and np.isfinite(float32s(task.hidden)).all():
            self.scheduler.keep(task)
        self.desk.control.send(task.id.router, Committed(task.id))
        self.scheduler.ready.add(task)

    def start_searches(self, now: float) -> None:
        """Let tasks whose KV is here, and for which rows are free, take part in the next step."""
        if task := self.scheduler.to_give_up(chain(self.searching.values(), self.inbound.arriving.values())):
            self.counters["preempted"] += 1
            self.fail(task.id, Preempted("online work needs the memory"))
        for task, rows in self.scheduler.next_starts(now):
            task.start_search(rows, self.engine.tail_tokens, self.clock())

    def expire(self, now: float) -> None:
        """Deadlines, routers that passed away, and what hand-overs wait for."""
        self.scheduler.cost = self.engine.costs.cost
        for id in self.conditions.late(now):
            self.fail(id, DeadlineExceeded("the deadline passed while the condition was evaluated"))
        tasks = self.tasks
        for task in tasks:
            # What a launch has in hand costs no more time, and nobody knows how far it is.
            others = len(tasks) > 1 and task.phase is not TaskPhase.IN_FLIGHT
            if self.scheduler.hopeless(task, now, others):
                self.fail(task.id, DeadlineExceeded("the deadline could not be met by the search"))
        self.desk.dismiss_gone(now)
        self.inbound.expire(now)
        if self.inbound.memories.took_prompts_along:
            for task in list(self.searching.values()):
                self.fail(task.id, WorkerLost("the prefill worker died", "prefill"))

    @property
    def finished(self) -> bool:
        """Whether this process can be of no use any more, and neither holds nor sends what could be."""
        over = self.inbound.memories.orphaned and not self.tasks and not self.conditions
        return over and self.clock() - max(self.ended_at, self.inbound.ended_at) >= _LAST_WORDS

    # --- state ---

    def idle_seconds(self) -> float:
        """How long the loop may sleep if nothing arrives."""
        if self.turn_taken and not self.engine.busy:
            return LOOK_EVERY
        if self.running or self.worked or self.engine.busy:
            return 0.0  # a launch whose requests are all gone still holds the device's turn
        if self.inbound.commits:
            return _COPY_WAIT
        due = self.updates.due(self.clock())
        return self.config.heartbeat / 2 if due is None else min(self.config.heartbeat / 2, due)

    def cannot_search(self, view: CatalogView) -> str:
        """Why searches here could not use a version, or an empty string."""
        if view.catalog.emitted_tokens != self.emitted_tokens:
            return (
                f"its items have {view.catalog.emitted_tokens} tokens, this worker was started for "
                f"{self.emitted_tokens}: restart the deployment with it"
            )
        if self.limits.plain_scores and not view.catalog.scoring.plain:
            return (
                "its scoring has score_mode level or a repetition_penalty, which searches on a GPU lack: "
                "leave them out of it, or restart the deployment with --device cpu"
            )
        return ""

    def introduce(self) -> WorkerHello:
        return WorkerHello(
            protocol=PROTOCOL,
            role="decode",
            worker=self.config.name,
            incarnation=self.desk.incarnation,
            model=self.identity,
            data_address=self.data_address,
            catalogs=self.catalogs.versions[-MOST_VERSIONS:],
            limits=self.limits,
            load=self.load(),
            turns=self.config.turns_file,
            memory=self.inbound.memories.read_in_place,
            change=self.desk.change,
        )

    def _longest_wait(self) -> float:
        """Seconds that the oldest task has waited for pages or rows; 0 where none does."""
        phases = (TaskPhase.PAGES, TaskPhase.ROWS)
        began = [task.began[task.phase] for task in self.tasks if task.phase in phases]
        return self.clock() - min(began) if began else 0.0

    def load(self) -> Load:
        bad = self.desk.control.listener.bad_messages + self.inbound.data.listener.bad_messages
        counters = self.counters | self.engine.counters
        counters |= {
            "bad_messages": bad,
            "evicted_pages": self.cache.evicted,
            LAUNCHES: self.engine.costs.seen,
            ROWS_TOTAL: self.scheduler.rows.capacity,
            WAITING_SECONDS: self._longest_wait(),
            "filters_evaluated": self.catalogs.newest.filters.misses,
            "filters_reused": self.catalogs.newest.filters.hits,
        }
        return Load(
            requests=len(self.tasks) + len(self.conditions),
            pages_used=self.cache.used,
            pages_cached=self.cache.cached_pages,
            pages_total=self.cache.capacity,
            credits_out=sum(task.receiver.credits_out for task in self.inbound.holding),
            leases=sum(task.receiver.renewable for task in self.inbound.holding),
            rows_used=self.scheduler.rows.used,
            counters=counters,
            cost=self.engine.costs.cost,
        )
