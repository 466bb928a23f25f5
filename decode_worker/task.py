"""One attempt at a request in the decode worker, and how a router's message becomes one."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decode_worker.candidates import Portions
from decode_worker.memories import MappedPrompt
from decode_worker.phases import TaskPhase
from decode_worker.search import Floats, Ints, Penalty, Question, Search
from xgr_kernels.trie import LeafFilter, leaf_filter
from xgr_runtime.catalog import Catalogs, CatalogView, Lease
from xgr_runtime.errors import BadRequest
from xgr_runtime.handover.protocol import Receiver
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.kv.prompt_cache import Tokens
from xgr_runtime.model.device.device import Event
from xgr_runtime.scheduling.cost_model import Work, one_by_one
from xgr_runtime.trace.timeline import REQUEST, Timeline
from xgr_runtime.wire.arrays import float32s, int32s
from xgr_runtime.wire.messages import (
    MOST_CANDIDATES,
    AttemptId,
    DecodeRequest,
    Limits,
    ModelIdentity,
    Timing,
)


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
    source: MappedPrompt | None = None  # where the prompt lies, if it does not come as frames
    copied: Event | None = None  # the last copy into our pages
    cached_tokens: int = 0  # of the prompt, which prefill did not compute
    hidden: bytes | None = None  # of the prompt's last token, float32, if it came with the KV
    began: dict[TaskPhase, float] = field(default_factory=dict)  # its phases so far, in order
    search: Search | None = None
    portions: Portions | None = None  # of candidates; `question` is that of one of them

    @property
    def phase(self) -> TaskPhase:
        """How far it is."""
        return self.search.phase if self.search else next(reversed(self.began))

    def enter(self, phase: TaskPhase, now: float) -> None:
        """It gets so far."""
        self.began[phase] = now

    def let_go(self) -> None:
        """Nothing reads its version of the catalog any more."""
        self.lease.end()

    def start_search(self, rows: PageIds, tail_tokens: int, now: float) -> None:
        """It has rows: see `Search`."""
        self.search = self._search(rows, tail_tokens)
        self.enter(TaskPhase.SEARCH, now)

    def goes_on(self) -> bool:
        """Whether another search follows the one that is over, in the same rows: the next portion."""
        search, portions = self.search, self.portions
        assert search is not None, "it is over"
        if portions is None or search.invalid:
            return False
        portions.take(*search.answer())
        if not portions.rest:
            return False
        self.question = portions.next()
        self.search = self._search(search.rows, search.anc.shape[1])
        self.search.forward_seconds = search.forward_seconds
        return True

    def answer(self) -> tuple[Ints, Floats]:
        """Leaves and scores [n], best first, once its last search is over."""
        assert self.search is not None, "it is over"
        return self.search.answer() if self.portions is None else self.portions.answer()

    def _search(self, rows: PageIds, tail_tokens: int) -> Search:
        hidden = None if self.hidden is None else float32s(self.hidden).copy()
        return Search(self.question, self.pages, rows, hidden, tail_tokens)

    @property
    def due(self) -> float:
        return self.deadline

    @property
    def work_left(self) -> Work:
        """The steps that its search still needs, and those behind it."""
        own = self.question.work_from[self.search.level if self.search else 0]
        if self.portions is None:
            return own
        return one_by_one([own, *self.portions.works])

    @property
    def prompt_tokens(self) -> int:
        return self.question.prompt_tokens

    @property
    def most_beams(self) -> int:
        return self.question.most_beams

    def timing(self, now: float) -> Timing:
        """Where the time went, but for the transfer, in seconds."""
        arrived, started = self.began[TaskPhase.ROWS], self.began[TaskPhase.SEARCH]
        return Timing(
            queue=self.receiver.queue_seconds,
            prefill=self.receiver.prefill_seconds,
            transfer=0.0,
            decode=now - arrived,
            forward=self.search.forward_seconds if self.search else 0.0,
            wait=started - arrived,
        )

    def record(self, timeline: Timeline, now: float) -> None:
        """Its life in this worker, which ends `now`: the whole, and the phases that it reached."""
        begin = min(self.began.values())
        timeline.add(REQUEST, "request", begin, now, self.id, rows=self.most_beams)
        for (phase, start), end in zip(self.began.items(), [*self.began.values(), now][1:], strict=True):
            if end >= start:  # an OPEN may have come before the request
                timeline.add(REQUEST, phase.value, start, end, self.id)


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
        most = self.limits.max_beam_width if request.candidates is None else MOST_CANDIDATES
        if not 0 < request.results <= request.width <= most:
            raise BadRequest(f"width {request.width} or results {request.results} out of range")
        if self.limits.plain_scores and (request.score_mode == "level" or request.repetition_penalty != 1):
            raise BadRequest("this worker's device has no score mode level and no repetition penalty")
        if self.limits.plain_scores and request.candidates is not None and request.score_mode != "vocab":
            raise BadRequest("this worker's device scores candidates in score mode vocab alone")
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
        model, levels = self.model, lease.view.levels(request.score_mode)
        filter, shared = filter_of(request, lease.view)
        question = Question(
            len(tokens),
            int(tokens[-1]),
            request.width,
            request.results,
            request.score_mode,
            levels.trie,
            filter,
            levels.silent,
            codebooks_of(request, lease.view),
            penalty_of(request, tokens, model.vocab, lease.view),
            shared_bits=shared,
        )
        portions = self.portions_of(request, question)
        if portions is not None:
            question = portions.next()
        receiver = Receiver(
            request.id, len(tokens), model.layers, model.kv_heads, model.layer_token_bytes, 4 * model.hidden
        )
        deadline = now + request.timeout
        task = DecodeTask(request.id, tokens, question, receiver, lease, deadline, request.priority)
        task.portions = portions
        task.enter(TaskPhase.PREFILL, now)
        return task

    def portions_of(self, request: DecodeRequest, question: Question) -> Portions | None:
        """Of the request's candidates, none wider than a search may be. Raises `BadRequest`."""
        if request.candidates is None:
            return None
        leaves = int32s(request.candidates[: len(request.candidates) // 4 * 4])
        if not len(leaves) == request.width == request.results:
            raise BadRequest(f"width {request.width} is not that of {len(leaves)} candidates", "candidates")
        return Portions.of(question, leaves, self.limits.max_beam_width)


def codebooks_of(request: DecodeRequest, view: CatalogView) -> list[NDArray[np.int64] | None]:
    """What the softmax of each level is over, where the request says that it is over a level's tokens."""
    if request.score_mode != "level":
        return []
    return [None] * view.levels("level").first + [*view.catalog.codebooks]


def penalty_of(request: DecodeRequest, tokens: Tokens, vocab: int, view: CatalogView) -> Penalty | None:
    """On tokens that the prompt holds, and beams will. Raises `BadRequest`."""
    if request.repetition_penalty == 1:
        return None
    if request.repetition_penalty == 0:
        raise BadRequest("repetition_penalty is 0, it must be above")
    distinct = np.unique(tokens).astype(np.int64)
    if not 0 <= distinct[0] <= distinct[-1] < vocab:
        raise BadRequest(f"the prompt has a token outside of the vocabulary of {vocab}")
    again = view.catalog.scoring.renormalize and request.score_mode != "legal"
    return Penalty(request.repetition_penalty, distinct, again)


def filter_of(request: DecodeRequest, view: CatalogView) -> tuple[LeafFilter, bool]:
    """The request's live leaves: those with a visible item that its expression leaves, and the numbers that
    the router sent; and whether its bits are those that other requests read as well.

    Raises `BadRequest`.
    """
    try:
        allow = None if request.allow is None else int32s(request.allow)
        deny = int32s(request.deny)
        within = view.filters.left_by(request.where).leaves if request.where else view.visible
        found = leaf_filter(view.leaves, allow, deny, within)
        return found, within is not None and found.bits is within.bits
    except ValueError as error:
        raise BadRequest(f"filter: {error}", "filters") from None
