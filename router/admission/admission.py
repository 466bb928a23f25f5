"""Which requests are promised an answer, and on which pair: by the time at which it would be there.

The policy:
- A request is foreseen on each compatible pair: what is more urgent there goes first, then its prompt, then
  its search. It gets the pair that is through first.
- What no idle pair could do in time is refused for good (504); what the backlog makes late, later (503).
- So is what would make a request late that was accepted, and that is not of lower priority.
- Predictions are multiplied by margins that follow what is observed, so that 99 of 100 promises are kept.
- Once in `TRIAL` seconds an idle pair is given what it seems unable to do: else what once was slow, or what
  its usual requests do not tell of, would be refused for ever.
- A worker that does not say what its launches cost, or says what cannot be, is taken to be like the others;
  where none does, nothing is foreseen, and everybody is admitted.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router.admission.backlog import Backlog, Rank, Share
from router.admission.margins import Margin
from router.admission.offered import Offered
from router.admission.pairing import Candidate, Pair, compatible, contenders, pairs_by_finish
from xgr_runtime.errors import DeadlineExceeded, NoWorkers, Overloaded
from xgr_runtime.scheduling.cost_model import Work, alone_and_shared, prompt_work, search_work
from xgr_runtime.wire.messages import StepCost

TRIAL = 1.0

_TRIED = 4  # pairs that are looked at before a request is refused
_SLOWEST = 3600.0  # seconds that a launch, a token or a pair may cost


class Ask(NamedTuple):
    """What admission needs to know of a request."""

    tokens: int
    beams: Sequence[int]  # that each level starts from
    deadline: float
    priority: int = 0


class Offer(NamedTuple):
    """What a request would be on one worker, in seconds."""

    own: float  # if nobody else were there
    part: float  # of the worker's time, when launches are shared
    ahead: float  # of work that goes before it
    rank: Rank

    def booking(self) -> "Booking":
        return Booking(self.own, Share(self.rank, self.part, self.ahead))


class Booking(NamedTuple):
    """A request on one worker."""

    own: float  # seconds, if nobody else were there
    share: Share  # of the worker's time, when launches are shared


class Forecast(NamedTuple):
    """A request on one pair, in seconds from now."""

    own: float
    wait: float

    @staticmethod
    def of(prefill: Booking, decode: Booking, one_device: bool) -> "Forecast":
        """The search begins once the prompt is there, and once what is more urgent is through.

        On one device more urgent searches and our own prompt are not done at the same time.
        """
        own, behind = prefill.own + decode.own, decode.share.ahead
        ready = prefill.share.ahead + prefill.own
        wait = max(prefill.share.ahead, behind) if one_device else max(ready, behind) - prefill.own
        return Forecast(own, wait)

    @property
    def total(self) -> float:
        return self.own + self.wait


@dataclass(eq=False)
class Promise:
    """An accepted attempt, from admission to its end."""

    pair: Pair
    prefill: Booking
    decode: Booking
    made: float
    deadline: float
    over: bool = False

    @property
    def foreseen(self) -> bool:
        """Whether both workers say what their launches cost."""
        return self.pair.prefill.cost is not None and self.pair.decode.cost is not None

    @property
    def after(self) -> float:
        """Seconds that it is expected to need once its prompt is computed."""
        return self.decode.own

    @property
    def forecast(self) -> Forecast:
        """With all that goes first, also what was accepted since."""
        return Forecast.of(self.prefill, self.decode, self.pair.one_device)

    @property
    def parts(self) -> list[tuple[Candidate, Share]]:
        """What it takes of which worker."""
        return [(self.pair.prefill, self.prefill.share), (self.pair.decode, self.decode.share)]

    @property
    def delays(self) -> list[tuple[Candidate, Rank, float]]:
        """By how many seconds it delays those of later ranks, on each device that it uses."""
        p, d = self.prefill.share, self.decode.share
        if self.pair.one_device:  # its prompt is the more urgent part
            return [(self.pair.prefill, p.rank, p.seconds + d.seconds)]
        return [(self.pair.prefill, p.rank, p.seconds), (self.pair.decode, d.rank, d.seconds)]


class Admission:
    """The backlogs of all workers as this router made them, and how well its predictions hold."""

    def __init__(self) -> None:
        self.backlogs: dict[int | str, Backlog] = {}  # by device
        self.own_margin = Margin()
        self.wait_margin = Margin()
        self.tried_at = -math.inf  # the last trial
        self.offered = Offered()

    def admit(
        self,
        ask: Ask,
        prefill: Sequence[Candidate],
        decode: Sequence[Candidate],
        catalog: str,
        now: float,
        avoid: Collection[int] = (),
        accepted: bool = False,
    ) -> Promise:
        """Book the request on the best pair. `accepted`: it has a promise, others' do not stand against it.

        Raises `NoWorkers`, `DeadlineExceeded`, `Overloaded`.
        """
        prefill = _with_costs(prefill, prompt_work(0, ask.tokens))
        decode = _with_costs(decode, search_work(ask.tokens, ask.beams))
        offers = self._offers(ask, prefill, decode, now)

        def finish(pair: Pair) -> float:
            p, d = offers[pair.prefill.incarnation], offers[pair.decode.incarnation]
            if pair.one_device:
                return p.own + max(p.ahead, d.ahead) + d.own
            return max(p.ahead + p.own, d.ahead) + d.own

        some = contenders(prefill, decode, catalog, avoid, _times(prefill, decode, offers), _TRIED)
        pairs = pairs_by_finish(*some, catalog, avoid, finish, _TRIED)
        if not pairs:
            raise NoWorkers("no compatible pair of workers is ready: see /workers")
        left = ask.deadline - now

        def own(pair: Pair) -> float:
            return offers[pair.prefill.incarnation].own + offers[pair.decode.incarnation].own

        fastest = own(pairs[0])
        if fastest > left:
            fastest = min(map(own, compatible(prefill, decode, catalog)))
        if fastest > left and not accepted and not self._may_try(pairs[0], now):
            raise DeadlineExceeded(
                f"the deadline cannot be met: {fastest * 1000:.0f} ms are needed, {left * 1000:.0f} are left",
                "timeout_ms",
            )
        late = math.inf
        for pair in pairs[:_TRIED]:
            promise = _promise(
                ask, pair, offers[pair.prefill.incarnation], offers[pair.decode.incarnation], now
            )
            excess = 0.0 if accepted else self._excess(promise, now)
            if not excess:
                return self._book(promise, now)
            late = min(late, excess)
        raise Overloaded(
            f"the requests under way leave no time for another: try again in {max(1, math.ceil(late))} s",
            retry_after=late,
        )

    def committed(self, promise: Promise, now: float) -> None:
        """The prefill worker is through with it."""
        self._remove(promise.pair.prefill, promise.prefill.share, now)

    def end(self, promise: Promise, now: float, answered: bool = False, late: bool = False) -> None:
        """It holds nothing any more: `answered`, or too `late`, or for another reason. Once is enough."""
        if promise.over:
            return
        promise.over = True
        self._remove(promise.pair.prefill, promise.prefill.share, now)
        self._remove(promise.pair.decode, promise.decode.share, now)
        if promise.foreseen and (answered or late):
            self._learn(promise, now, answered)

    def _offers(
        self, ask: Ask, prefill: Sequence[Candidate], decode: Sequence[Candidate], now: float
    ) -> dict[int, Offer]:
        """The request on every worker, by incarnation."""
        offers = {}
        search, rank = search_work(ask.tokens, ask.beams), (-ask.priority, ask.deadline)
        for w in decode:
            offers[w.incarnation] = self._offer(w, search, rank, now)
        after = min((offer.own for offer in offers.values()), default=0.0)
        rank = (-ask.priority, ask.deadline - after)
        for w in prefill:
            prompt = prompt_work(min(w.reuse, ask.tokens - 1), ask.tokens)
            offers[w.incarnation] = self._offer(w, prompt, rank, now)
        return offers

    def _offer(self, worker: Candidate, work: Work, rank: Rank, now: float) -> Offer:
        own, part = _seconds(worker.cost, work)
        backlog = self.backlogs.get(worker.device)
        return Offer(own, part, backlog.ahead(rank, now) if backlog else 0.0, rank)

    def _may_try(self, pair: Pair, now: float) -> bool:
        """Whether the pair is idle, and it is time to see again what it can do."""
        busy = {pair.prefill.device, pair.decode.device} & self.backlogs.keys()
        if busy or now - self.tried_at < TRIAL:
            return False
        self.tried_at = now
        return True

    def _excess(self, promise: Promise, now: float) -> float:
        """Seconds by which this promise, or another because of it, would not be kept; zero if all are."""
        if not promise.foreseen:
            return 0.0
        left, margin = promise.deadline - now, self.wait_margin.value(now)
        own, wait = promise.forecast
        need = own * self.own_margin.value(now) + wait * margin
        if wait > 0 and need > left:  # on an idle pair it may have its try
            return need - left
        late = 0.0
        for worker, rank, seconds in promise.delays:
            if (backlog := self.backlogs.get(worker.device)) is not None:
                late = max(late, backlog.would_be_late(rank, seconds, now, margin))
        return late

    def waiting(self, device: int | str) -> float:
        """Seconds of work that are promised there, and not done."""
        backlog = self.backlogs.get(device)
        return sum(share.seconds for share in backlog.shares) if backlog else 0.0

    def _book(self, promise: Promise, now: float) -> Promise:
        self.offered.add(promise.prefill.share.seconds, promise.decode.share.seconds, now)
        for worker, share in promise.parts:
            self.backlogs.setdefault(worker.device, Backlog()).add(share, now)
        return promise

    def _remove(self, worker: Candidate, share: Share, now: float) -> None:
        if (backlog := self.backlogs.get(worker.device)) is not None:
            backlog.remove(share, now)
            if not backlog.shares:
                del self.backlogs[worker.device]

    def _learn(self, promise: Promise, now: float, answered: bool) -> None:
        """Hold what was foreseen against what came; the wait where it was longer, else the work itself."""
        own, wait = promise.forecast
        took = now - promise.made if answered else math.inf
        if not answered and promise.made + own + wait > promise.deadline:
            return  # it had to give way to a higher priority
        if wait > own:
            self.wait_margin.observe((took - own * self.own_margin.value(now)) / wait, now)
        elif own > 0:
            self.own_margin.observe((took - wait * self.wait_margin.value(now)) / own, now)


def _promise(ask: Ask, pair: Pair, prefill: Offer, decode: Offer, now: float) -> Promise:
    """Both shares are due when the rest, alone, still makes the deadline."""
    promise = Promise(pair, prefill.booking(), decode.booking(), now, ask.deadline)
    promise.prefill.share.due, promise.decode.share.due = ask.deadline - decode.own, ask.deadline
    return promise


def _times(
    prefill: Sequence[Candidate], decode: Sequence[Candidate], offers: Mapping[int, Offer]
) -> dict[int, tuple[float, float]]:
    """What `Forecast.of` rises with, by incarnation: of prompts when they are there."""
    times: dict[int, tuple[float, float]] = {}
    for w in prefill:
        own, _, ahead, _ = offers[w.incarnation]
        times[w.incarnation] = own + ahead, 0.0
    for w in decode:
        own, _, ahead, _ = offers[w.incarnation]
        times[w.incarnation] = own, ahead
    return times


def _with_costs(workers: Sequence[Candidate], work: Work) -> list[Candidate]:
    """Who has not proven what its launches cost is taken to be like the quickest at this work.

    Without a cost it would seem free; and workers that start side by side disturb each other's trials, so
    that one of two equals would get no request by which it could show that it is one.
    """
    known = [worker.cost for worker in workers if _possible(worker.cost)]
    if len(known) == len(workers) and all(worker.proven for worker in workers):
        return list(workers)
    quickest = min(known, key=lambda cost: _seconds(cost, work), default=None)
    return [
        worker if worker.proven and _possible(worker.cost) else worker._replace(cost=quickest)
        for worker in workers
    ]


def _possible(cost: StepCost | None) -> bool:
    """Whether it is a cost from which finite seconds follow: NaN is in no range."""
    if cost is None:
        return False
    return (
        0 <= cost.fixed <= _SLOWEST
        and 0 <= cost.per_token <= _SLOWEST
        and 0 <= cost.per_pair <= _SLOWEST
        and cost.most_tokens > 0
        and cost.most_pairs > 0
    )


def _seconds(cost: StepCost | None, work: Work) -> tuple[float, float]:
    """That work needs alone, and of a worker's time when shared; nothing where the cost is unknown."""
    return alone_and_shared(cost, work) if cost else (0.0, 0.0)
