"""One attempt at a request in the decode worker, and how a router's message becomes one."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from decode_worker.memories import Source
from decode_worker.search import Question, Search
from xgr_kernels.trie import LeafFilter, leaf_filter
from xgr_runtime.catalog import Catalogs, CatalogView, Lease
from xgr_runtime.errors import BadRequest
from xgr_runtime.handover.protocol import Receiver
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.kv.prompt_cache import Tokens
from xgr_runtime.model.device.device import Event
from xgr_runtime.scheduling.cost_model import Work
from xgr_runtime.trace.timeline import REQUEST, Timeline
from xgr_runtime.wire.arrays import int32s
from xgr_runtime.wire.messages import AttemptId, Commit, DecodeRequest, Limits, ModelIdentity, Open, Timing

_PHASES = ("wait for prefill", "wait for pages", "receive KV", "wait for rows", "search")


@dataclass(eq=False)
class DecodeTask:
    """One attempt, from the router's request to the answer."""

    id: AttemptId
    tokens: Tokens  # [L], the prompt
    question: Question
    receiver: Receiver
    lease: Lease  # of the version of the catalog that its search reads
    deadline: float
    priority: int = 0  # higher first
    peer: bytes = b""  # of the prefill worker, once it opened
    pages: PageIds = field(default_factory=lambda: np.empty(0, np.int32))  # of the engine's pool
    source: Source | None = None  # where the prompt lies, if it does not come as frames
    copied: Event | None = None  # the last copy into our pages
    cached_tokens: int = 0  # of the prompt, which prefill did not compute
    hidden: bytes | None = None  # of the prompt's last token, float32, if it came with the KV
    arrived_at: float = 0.0
    opened_at: float = 0.0
    granted_at: float = 0.0
    committed_at: float = 0.0
    started_at: float = 0.0  # the search
    search: Search | None = None

    @property
    def due(self) -> float:
        return self.deadline

    @property
    def work_left(self) -> Work:
        """The steps that its search still needs."""
        return self.question.work_from[self.search.level if self.search else 0]

    @property
    def prompt_tokens(self) -> int:
        return self.question.prompt_tokens

    @property
    def most_beams(self) -> int:
        return self.question.most_beams

    def timing(self, now: float) -> Timing:
        """Where the time went, but for the transfer, in seconds."""
        return Timing(
            queue=self.receiver.queue_seconds,
            prefill=self.receiver.prefill_seconds,
            transfer=0.0,
            decode=now - self.committed_at,
            forward=self.search.forward_seconds if self.search else 0.0,
            wait=self.started_at - self.committed_at,
        )

    def record(self, timeline: Timeline, now: float) -> None:
        """Its life in this worker, which ends `now`: the whole, and the phases that it reached."""
        moments = [self.arrived_at, self.opened_at, self.granted_at, self.committed_at, self.started_at]
        begin = min([moment for moment in moments if moment] or [now])
        timeline.add(REQUEST, "request", begin, now, self.id, rows=self.most_beams)
        ends = [*moments[1:], now]
        for name, start, end in zip(_PHASES, moments, ends, strict=True):
            if start and (end or now) >= start:  # an OPEN may have come before the request
                timeline.add(REQUEST, name, start, end or now, self.id)


class EarlyOpen(NamedTuple):
    """An OPEN that overtook the router's request."""

    peer: bytes
    message: Open
    arrived: float


class Arrival(NamedTuple):
    """A COMMIT that waits for the copies before it."""

    task: DecodeTask
    message: Commit
    frames: list[memoryview]


@dataclass(frozen=True)
class TaskFactory:
    """Makes tasks for one model and the versions of its catalog."""

    catalogs: Catalogs
    model: ModelIdentity
    limits: Limits

    def make(self, request: DecodeRequest, now: float) -> DecodeTask:
        """The task of a request, checked. Whoever ends the task ends its lease. Raises `BadRequest`."""
        tokens = int32s(request.tokens[: len(request.tokens) // 4 * 4])
        if not 0 < len(tokens) <= self.limits.max_prompt_tokens:
            raise BadRequest(f"the prompt has {len(tokens)} tokens, see the limits announced")
        if not 0 <= tokens[-1] < self.model.vocab:
            raise BadRequest(f"the prompt's last token is outside of the vocabulary of {self.model.vocab}")
        if not 0 < request.results <= request.width <= self.limits.max_beam_width:
            raise BadRequest(f"width {request.width} or results {request.results} out of range")
        lease = self.lease_for(request)
        try:
            return self.task_of(request, tokens, lease, now)
        except BaseException:
            lease.end()
            raise

    def lease_for(self, request: DecodeRequest) -> Lease:
        try:
            return self.catalogs.lease(request.catalog)
        except KeyError:
            raise BadRequest(f"this worker has no catalog {request.catalog}", "catalog") from None

    def task_of(self, request: DecodeRequest, tokens: Tokens, lease: Lease, now: float) -> DecodeTask:
        question = Question(
            len(tokens),
            int(tokens[-1]),
            request.width,
            request.results,
            request.score_mode,
            lease.view.trie,
            filter_of(request, lease.view),
        )
        model = self.model
        receiver = Receiver(
            request.id, len(tokens), model.layers, model.kv_heads, model.layer_token_bytes, 4 * model.hidden
        )
        deadline = now + request.timeout
        return DecodeTask(
            request.id, tokens, question, receiver, lease, deadline, request.priority, arrived_at=now
        )


def filter_of(request: DecodeRequest, view: CatalogView) -> LeafFilter:
    """The request's live leaves, from the leaf numbers that the router sent. Raises `BadRequest`."""
    try:
        allow = None if request.allow is None else int32s(request.allow)
        deny = int32s(request.deny)
        return leaf_filter(view.leaves, allow, deny)
    except ValueError as error:
        raise BadRequest(f"filter: {error}", "filters") from None
