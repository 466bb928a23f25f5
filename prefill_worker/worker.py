"""The prefill worker's loop: take prompts, run them, stream their KV, free it once it has arrived."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefill_worker.ahead import Ahead
from prefill_worker.engines.base import PrefillEngine
from prefill_worker.kv_source import PooledPrompt
from prefill_worker.requests import prompt_of
from prefill_worker.scheduler import PrefillScheduler, Prompt, Turn
from prefill_worker.trials import try_forwards
from xgr_runtime.config import PrefillConfig
from xgr_runtime.errors import DeadlineExceeded, Preempted, RequestError
from xgr_runtime.handover.outbound import Outbound
from xgr_runtime.handover.protocol import PromptPages
from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.prompt_cache import PromptCache, Tier
from xgr_runtime.scheduling.cost_model import CostModel, Tried, prompt_work, together
from xgr_runtime.scheduling.queue import is_batch
from xgr_runtime.trace.timeline import FORWARD, REQUEST
from xgr_runtime.transport import Listener, Poller
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import (
    LAUNCHES,
    PROTOCOL,
    WAITING_TOKENS,
    AttemptId,
    Limits,
    Load,
    Message,
    ModelIdentity,
    PrefillRequest,
    SharedKv,
    ToPrefill,
    WorkerHello,
)
from xgr_runtime.worker.desk import Desk
from xgr_runtime.worker.device_turns import LOOK_EVERY, PREFILL_SIDE, turn_for_trials, turns_of
from xgr_runtime.worker.known_costs import KnownCosts

log = logging.getLogger(__name__)

_STALL_WAIT = 0.005  # seconds until a socket that took no more is tried again


class PrefillWorker:
    """Owns prompt KV from the moment a prompt runs until ACK, failure or a lapsed lease."""

    def __init__(
        self,
        config: PrefillConfig,
        engine: PrefillEngine,
        pool: PagePool,
        identity: ModelIdentity,
        max_prompt_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        memory: SharedKv | None = None,
        tier: Tier | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.pool = pool
        self.identity = identity
        self.max_prompt_tokens = max_prompt_tokens
        self.clock = clock
        self.memory = memory  # the pool's, if decode workers may map it
        self.device_turns = turns_of(config.turns_file, PREFILL_SIDE, config.device)
        self.turn_taken = False  # by another worker, when we asked last
        self.ahead = Ahead(engine)
        self.held = 0.0  # seconds for which the next forward waits for more prompts
        self.cache = PromptCache.bounded(
            pool, config.page_size, config.cache_bytes, identity.token_bytes, tier
        )
        self.costs = CostModel()
        self.known_costs = KnownCosts(self.costs)
        self.scheduler = PrefillScheduler(
            self.cache, config.batch_tokens, engine.max_prompts, self.costs, config.batch_window_ms / 1000
        )
        self.prompts: dict[AttemptId, Prompt] = {}  # that have pages
        self.preempted = set[AttemptId]()  # of them, those that the router was asked to end
        self.layer_began = 0.0  # in the forward that runs
        self.stalled = False  # a socket took no more
        self.worked = False  # the last turn ran a batch: pages may have become free meanwhile
        listener: Listener[Message] = Listener(config.control_address, ToPrefill, keys=keys)
        self.desk = Desk(self, "prefill", PrefillRequest, listener, config.silence)
        self.timeline, self.counters = self.desk.timeline, self.desk.counters
        self.poller = Poller()
        self.poller.add(listener)
        if self.device_turns.wakeup is not None:
            self.poller.add(self.device_turns.wakeup)
        self.outbound = Outbound(
            config.name,
            self.desk.incarnation,
            identity,
            config.chunk_bytes,
            config.lease,
            self.poller,
            memory,
            timeline=self.timeline,
            keys=keys,
        )

    def learn_costs(
        self, cache: Path | None, how: Sequence[str], tried: Sequence[Tried] | None = None
    ) -> None:
        """Try some forwards, and recall what others took. `how`: see `KnownCosts.of`.

        `tried`: forwards that were tried before, in the place of those.
        """
        self.known_costs = KnownCosts.of(self.costs, self.config, self.identity, cache, how)
        if tried is None:
            with turn_for_trials(self.device_turns):
                tried = try_forwards(self.engine, min(self.config.batch_tokens, self.max_prompt_tokens))
        self.known_costs.begin(tried)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Messages in, KV out, a forward when prompts wait; until `stopping`."""
        while not stopping():
            self.poller.wait(self.idle_seconds())
            self.exchange()
            self.expire(self.clock())
            self.retire()
            self.make_room()
            turns = self.next_turns()
            self.prefill(turns)
            self.device_turns.give()
            self.worked = bool(turns)
            self.known_costs.keep_now_and_then(self.clock())
        self.known_costs.keep()

    def close(self) -> None:
        """Listen and send no more, behind `run`: another worker of this process may listen there.

        It may write to the pages, too: who still reads one shall notice.
        """
        self.pool.generations[:] += np.uint32(1)
        self.desk.control.listener.withdraw()
        self.outbound.close()
        self.device_turns.close()

    def next_turns(self) -> list[Turn]:
        """What runs now; nothing while another worker has the device.

        What is to be planned is planned before the device is ours: in a turn the other one would wait, too.
        """
        if not self.may_run():
            return []
        turns: list[Turn] = []
        if self.engine.prepares:
            self.device_turns.want()
            turns = self.choose()
        self.turn_taken = not self.device_turns.try_take()
        if self.turn_taken:
            return []
        return turns or self.choose()

    def may_run(self) -> bool:
        """Whether there is something to run."""
        now = self.clock()
        self.held = self.scheduler.hold(now)
        # Prompts that wait for pages may need the other worker's turn.
        if not self.scheduler.runnable(now):
            self.turn_taken = False
            self.device_turns.forget()
            return False
        return True

    def choose(self) -> list[Turn]:
        """The turns of the next forward, whose hand-overs have begun, and prepared if that is possible."""
        turns = self.opened(self.scheduler.next_turns(self.clock()))
        self.ahead.prepare(turns)
        return turns

    def plan_ahead(self, running: list[Turn]) -> None:
        """Choose and prepare the next forward while the last layers of this one run.

        It is chosen again when it may run, as prompts come and go meanwhile.
        """
        self.exchange()
        try:
            if self.scheduler.runnable(self.clock()) and not self.scheduler.would_find_more(running):
                self.choose()
        except Exception:
            log.exception("the next forward could not be planned while one runs")

    def exchange(self) -> None:
        """Everything in, everything out that may leave. Also runs between the layers of a forward."""
        now = self.clock()
        self.desk.listen(now)
        self.desk.handle(now)
        self.stalled = not self.outbound.exchange(now)

    def prefill(self, turns: list[Turn]) -> None:
        """One forward; each layer's KV leaves while the next layer is computed."""
        if not turns:
            return
        parts = self.ahead.parts_of(turns)
        for turn in turns:
            self.scheduler.launched(turn)
        started = self.layer_began = self.clock()
        try:
            hidden = self.engine.run(parts, partial(self.layer_ready, turns), partial(self.plan_ahead, turns))
        except Exception:
            log.exception("a forward of %d prompts failed", len(turns))
            self.prefill_alone(turns)
            return
        ended = self.clock()
        seconds = ended - started
        for turn, last in zip(turns, hidden, strict=True):
            self.finish(turn, last, seconds)
            tokens = turn.end - turn.start
            self.timeline.add(REQUEST, "prefill", started, ended, turn.prompt.id, tokens=tokens)
        self.counters["forward_seconds"] += seconds
        tokens = sum(turn.end - turn.start for turn in turns)
        self.timeline.add(FORWARD, "forward", started, ended, prompts=len(turns), tokens=tokens)
        self.costs.observe(together(prompt_work(turn.start, turn.end) for turn in turns), seconds)

    def layer_ready(self, turns: list[Turn], layer: int) -> None:
        """A layer's KV is in the pages: it may leave."""
        for turn in turns:
            transfer = self.outbound.transfers[turn.prompt.id]
            transfer.layer_ready(layer, turn.end)
            self.outbound.flush(transfer)
        if self.desk.deaf(self.clock()):
            self.exchange()
        began, self.layer_began = self.layer_began, self.clock()
        self.timeline.add(FORWARD, f"layer {layer}", began, self.layer_began)

    def finish(self, turn: Turn, hidden: NDArray[np.float32], seconds: float) -> None:
        """A turn is over. `hidden` [hidden] is that of its last token."""
        prompt = turn.prompt
        prompt.seconds += seconds
        if turn.last:  # first of all, as its decode worker waits for it
            transfer = self.outbound.transfers[prompt.id]
            transfer.prompt_ready(prompt.seconds, pack(hidden), prompt.cached_tokens)
            self.outbound.flush(transfer)
            self.counters["prompts"] += 1
        self.counters["prompt_tokens"] += turn.end - turn.start
        if prompt.held is not None and np.isfinite(hidden).all():  # it has read all KV before it
            self.cache.keep(prompt.held, turn.end)

    def prefill_alone(self, turns: list[Turn]) -> None:
        """Find out whose forward fails: only that request ends."""
        if len(turns) == 1:
            self.fail(turns[0].prompt.id, self.desk.bug())
        else:
            for turn in turns:
                self.prefill([turn])

    # --- requests, as they come in at the desk ---

    def holds(self, id: AttemptId) -> bool:
        """See `Holder`."""
        return id in self.prompts or any(prompt.id == id for prompt in self.scheduler.waiting)

    def accept(self, request: PrefillRequest, now: float) -> None:
        """See `Holder`. Raises `BadRequest`, and as `Outbound.connect`."""
        prompt = prompt_of(request, now, self.max_prompt_tokens, self.identity.vocab)
        self.outbound.connect(prompt.data_address)  # while the prompt waits
        self.scheduler.add(prompt)

    def cancel(self, id: AttemptId) -> None:
        """See `Holder`."""
        self.scheduler.drop(id)
        if id in self.prompts:
            self.outbound.transfers[id].fail("cancelled by the router")

    def fail(self, id: AttemptId, error: RequestError) -> None:
        """See `Holder`. What is handed over already is reported once it holds no page any more."""
        if (transfer := self.outbound.transfers.get(id)) is not None:
            transfer.give_up(error)  # `retire` does the rest
            return
        self.scheduler.drop(id)
        if (prompt := self.prompts.pop(id, None)) is not None:
            self.scheduler.end(prompt)
        self.desk.report(id, error)

    def part_with(self, router: int, error: RequestError) -> None:
        """See `Holder`."""
        held = [*(prompt.id for prompt in self.scheduler.waiting), *self.prompts]
        for id in held:
            if id.router == router:
                self.fail(id, error)
        self.retire()

    # --- hand-overs ---

    def opened(self, turns: list[Turn]) -> list[Turn]:
        """Open all prompts that have pages now; the turns of those whose hand-over has begun."""
        for prompt in self.scheduler.begun:  # one that got pages may still have found no room
            if prompt.id not in self.prompts:
                self.open(prompt)
        return [turn for turn in turns if turn.prompt.id in self.prompts]

    def open(self, prompt: Prompt) -> None:
        """Pages are reserved: announce the prompt to its decode worker. Without a hand-over it ends here."""
        try:
            self.begin(prompt)
        except RequestError as error:
            self.fail(prompt.id, error)
        except Exception:
            log.exception("request %d could not be opened", prompt.id.request)
            self.fail(prompt.id, self.desk.bug())

    def begin(self, prompt: Prompt) -> None:
        """Say OPEN and offer what is cached."""
        now = self.clock()
        self.prompts[prompt.id] = prompt
        self.timeline.add(REQUEST, "wait", prompt.arrived, now, prompt.id)
        self.counters["cached_tokens"] += prompt.cached_tokens
        transfer = self.outbound.open(
            prompt.id,
            len(prompt.tokens),
            prompt.data_address,
            prompt.deadline,
            now - prompt.arrived,
            self.source_of(prompt),
            now,
        )
        for layer in range(self.identity.layers):
            transfer.layer_ready(layer, prompt.cached_tokens)

    def source_of(self, prompt: Prompt) -> PooledPrompt:
        """Where a prompt's transfer finds its KV."""
        pages = prompt.pages
        shared = PromptPages(pages, self.pool.generations[pages]) if self.memory else None
        return PooledPrompt(self.engine.pool, pages, shared)

    def expire(self, now: float) -> None:
        """Deadlines, leases and routers that passed away."""
        for prompt in self.scheduler.drop_late(now):
            error = DeadlineExceeded("the deadline could not be met in the prefill queue")
            self.desk.report(prompt.id, error)
        for prompt in self.scheduler.late(now):
            error = DeadlineExceeded("the deadline could not be met by the rest of the prompt")
            self.fail(prompt.id, error)
        self.outbound.expire(now)
        self.desk.dismiss_gone(now)

    def make_room(self) -> None:
        """Have the router end the batch prompt that came last, if online work waits for pages.

        It cancels what the decode worker has of it, too: that may be what reads the pages. One at a time.
        """
        self.preempted &= self.prompts.keys()
        if self.preempted or not self.scheduler.starved:
            return
        last = next((p for p in reversed(self.prompts.values()) if is_batch(p.priority)), None)
        if last is not None:
            self.preempted.add(last.id)
            self.counters["preempted"] += 1
            self.desk.report(last.id, Preempted("online work needs the memory"))

    def retire(self) -> None:
        """Free the pages of hand-overs that are over. Never runs during a forward, which writes to them."""
        for transfer in self.outbound.retire():
            prompt = self.prompts.pop(transfer.id)
            self.scheduler.end(prompt)
            self.timeline.add(
                REQUEST, "prompt", prompt.arrived, self.clock(), prompt.id, tokens=len(prompt.tokens)
            )
            if transfer.failure:
                self.desk.report(transfer.id, transfer.failure)

    # --- state ---

    def idle_seconds(self) -> float:
        """How long the loop may sleep if nothing arrives."""
        if self.worked:
            return 0.0
        if self.turn_taken:
            return LOOK_EVERY
        wait = _STALL_WAIT if self.stalled else self.config.heartbeat / 2
        return min(wait, self.held or wait)

    def introduce(self) -> WorkerHello:
        return WorkerHello(
            protocol=PROTOCOL,
            role="prefill",
            worker=self.config.name,
            incarnation=self.desk.incarnation,
            model=self.identity,
            data_address="",
            catalogs=[],
            limits=Limits(self.max_prompt_tokens),
            load=self.load(),
            turns=self.config.turns_file,
            memory=self.memory.id if self.memory else 0,
            change=self.desk.change,
        )

    def load(self) -> Load:
        counters = self.counters | {
            "bad_messages": self.desk.control.listener.bad_messages + self.outbound.bad_messages,
            "stale_messages": self.counters["stale_messages"] + self.outbound.stale_messages,
            "outlived_leases": self.outbound.outlived_leases,
            "evicted_pages": self.cache.evicted,
            "restored_pages": self.cache.restored,
            LAUNCHES: self.costs.seen,
            WAITING_TOKENS: sum(prompt.left for prompt in self.scheduler.waiting),
        }
        return Load(
            requests=len(self.scheduler.waiting) + len(self.prompts),
            pages_used=self.cache.used,
            pages_cached=self.cache.cached_pages,
            pages_total=self.cache.capacity,
            credits_out=self.outbound.credits_out,
            leases=len(self.prompts),
            rows_used=0,
            counters=counters,
            cost=self.costs.cost,
        )
