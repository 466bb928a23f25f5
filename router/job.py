"""What crosses between the router's HTTP edge and its dispatcher: a validated job in, an outcome out."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from router.listing import PLAIN, Listing
from xgr_kernels.trie import ScoreMode
from xgr_runtime.catalog import CatalogView, FilterSpec
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.scheduling.queue import is_batch
from xgr_runtime.trace.chrome import ProcessSpans
from xgr_runtime.trace.timeline import Timeline
from xgr_runtime.wire.answers import NoScore
from xgr_runtime.wire.messages import Limits, Role, Timing, WorkerHello


class Candidates(NamedTuple):
    """What is to be scored: entries as they were asked, and the leaves that they are."""

    leaves: NDArray[np.int32]  # [n] sorted distinct, all alive: those that have a score
    together: int  # that a worker takes at once, at most: of its widest search
    asked: NDArray[np.int32]  # [N] of each entry; -1: unknown
    why: tuple[NoScore | None, ...]  # [N] an entry has no score; None: it has one


@dataclass(frozen=True)
class Job:
    """A query bound to one version of a catalog: ids only, no strings of the client but `rid`.

    Whoever made it holds a lease of its view until the job is answered; all attempts at it use that version.
    """

    rid: str
    tokens: NDArray[np.int32]  # [L]
    width: int
    results: int
    score_mode: ScoreMode
    view: CatalogView
    filter: FilterSpec
    deadline: float  # time.monotonic()
    priority: int = 0  # higher first
    dropped_items: int = 0  # of the history, which did not fit
    unknown_history: int = 0  # items of it that the catalog does not hold
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    listing: Listing = PLAIN  # of the results
    probe: bool = False  # the router's own, to see whether all is well
    candidates: Candidates | None = None  # scores of just these, which are as many as `width` and `results`

    @property
    def batch(self) -> bool:
        """Whether it fills what online work leaves."""
        return is_batch(self.priority)

    @property
    def beams(self) -> int:
        """Leaves that the search answers: with diversity all that it found, of which some will be results."""
        return self.results if self.listing.diversity is None else self.width

    @property
    def allow(self) -> NDArray[np.int32] | None:
        """Leaves that live; None: all."""
        return self.filter.allow_leaves

    @property
    def deny(self) -> NDArray[np.int32]:
        """Leaves that do not."""
        return self.filter.deny_leaves

    @property
    def live_leaves(self) -> int:
        """How many leaves its filters, and its candidates, let live."""
        if self.candidates is not None:
            return len(self.candidates.leaves)
        if self.allow is not None:
            return len(self.allow)
        live = self.filter.live
        return (self.view.leaves if live is None else live.leaves.live(self.view.leaves)) - len(self.deny)

    @property
    def where(self) -> str:
        """The expression that a search needs besides `deny`; none where `allow` names what lives."""
        return "" if self.allow is not None or self.filter.live is None else self.filter.live.text


@dataclass(frozen=True)
class Outcome:
    """The best leaves, best first."""

    leaves: NDArray[np.int32]  # [n]
    scores: NDArray[np.float32]  # [n], natural log
    timing: Timing
    attempts: int
    cached_tokens: int = 0  # of the prompt, which prefill did not compute
    ceiling: float | None = None  # no other leaf has a score above it; None: not known


@dataclass(frozen=True)
class Flush:
    """What became of one worker's cache."""

    address: str
    pages: int  # that came free
    problem: str = ""  # why it was not flushed, else empty


@dataclass(frozen=True)
class WorkerState:
    """One worker as the router sees it; `hello` is None until it first answered."""

    address: str
    role: Role  # as configured, or as it said last where it can take either
    alive: bool
    usable: bool
    problem: str  # why it is not usable, else empty
    hello: WorkerHello | None
    in_flight: int  # attempts of this router
    away: float = 0.0  # seconds since it was lost, or since we look for it
    start_seconds: float = 0.0  # that its last start took; zero: not known
    leaving: bool = False  # it is removed, and finishes what it has
    flexible: bool = False  # it can take either role
    changing: bool = False  # it finishes what it has, and takes the other role


class Traced(NamedTuple):
    """What all processes did since `origin`, a moment of time.monotonic()."""

    processes: list[ProcessSpans]
    missing: dict[str, str]  # who is not in it, by address, and why
    origin: float


class Dispatch(Protocol):
    """What the HTTP edge needs from the dispatcher."""

    @property
    def timeline(self) -> Timeline:
        """Of this process."""

    async def generate(self, job: Job) -> Outcome:
        """Run the job on a pair of workers, with retries.

        Cancelling the awaiting task cancels the work everywhere. Raises `RequestError`: DuplicateRequest,
        Overloaded, NoWorkers, Draining, DeadlineExceeded, WorkerLost, CrashedWorkers, InvalidLogits,
        Cancelled (aborted).
        """

    def abort(self, rid: str) -> bool:
        """Cancel a live request everywhere; False when there is none of that id."""

    async def flush(self) -> list[Flush]:
        """Drop the prompt KV that only caches hold, in all workers; one entry each, prefill first."""

    async def refresh(self) -> None:
        """Ask all workers how they are; who is silent or gone keeps what it said last."""

    def workers(self) -> list[WorkerState]:
        """All workers, prefill first, as they last said."""

    @property
    def discovery_problem(self) -> str:
        """Why workers count as their file named them before, or an empty string."""

    def add_worker(self, named: WorkerAddress) -> WorkerState:
        """Talk to one more from now on; one that is there, or was leaving, stays.

        Raises `BadRequest` for an address that is refused, `DuplicateWorker` for one with another role.
        """

    def remove_worker(self, name: str) -> WorkerState:
        """Give the worker of that name or address no more requests, and forget it once it has none.

        Raises `NotFound`; `BadRequest` for a name that several have.
        """

    def limits(self) -> Limits | None:
        """What the compatible workers can serve at most; None when no compatible pair takes requests."""

    async def trace(self, seconds: float) -> Traced:
        """What this router and its workers did in the last `seconds`."""

    @property
    def draining(self) -> bool: ...

    @property
    def live(self) -> int:
        """Requests accepted and not yet answered."""
