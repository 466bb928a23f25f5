"""Which pair of workers serves a request. Plain data in, a decision out."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import le
from typing import NamedTuple

from xgr_runtime.wire.messages import ModelIdentity, StepCost


@dataclass(frozen=True)
class Candidate:
    """A worker as pairing sees it. `load` counts what this router has under way there, in its own unit:
    prompt tokens for prefill, beams for decode."""

    name: str
    incarnation: int
    model: ModelIdentity
    load: int
    catalogs: Collection[str] = ()
    cost: StepCost | None = None  # of its launches, if known
    reuse: int = 0  # of the request's first tokens, how many it probably holds
    turns: str = ""  # names the device that it shares with others of that name; empty: it has its own
    memory: int = 0  # prefill: where its prompts lie; decode: what it reads in place, and no other
    proven: bool = True  # the cost was learned from requests, not tried at the start alone

    @property
    def device(self) -> int | str:
        """What it computes on: work of all workers of one device is done one after the other."""
        return self.turns or self.incarnation


class Pair(NamedTuple):
    prefill: Candidate
    decode: Candidate

    @property
    def one_device(self) -> bool:
        """Whether its two workers take turns."""
        return self.prefill.device == self.decode.device


Finish = Callable[[Pair], float]
Times = Mapping[int, tuple[float, ...]]


def compatible(prefill: Sequence[Candidate], decode: Sequence[Candidate], catalog: str) -> Iterator[Pair]:
    """The pairs that can serve a request about that version of the catalog."""
    for d in decode:
        if catalog in d.catalogs:
            for p in prefill:
                if p.model == d.model and d.memory in (0, p.memory):
                    yield Pair(p, d)


def pairs_by_finish(
    prefill: Sequence[Candidate],
    decode: Sequence[Candidate],
    catalog: str,
    avoid: Collection[int] = (),
    finish: Finish = lambda pair: 0.0,
) -> list[Pair]:
    """The compatible pairs, those first that `finish` first; ties by load and reuse, then by name.

    Times within a millisecond are a tie. Incarnations in `avoid` (they failed this request before) come last.
    """

    def order(pair: Pair) -> tuple[int, float, int, int, int, str, str]:
        p, d = pair
        known_bad = (p.incarnation in avoid) + (d.incarnation in avoid)
        return known_bad, round(finish(pair), 3), p.load - p.reuse, d.load, -d.reuse, p.name, d.name

    return sorted(compatible(prefill, decode, catalog), key=order)


def contenders(
    prefill: Sequence[Candidate],
    decode: Sequence[Candidate],
    catalog: str,
    avoid: Collection[int],
    times: Times,
    most: int,
) -> tuple[list[Candidate], list[Candidate]]:
    """Workers among whom the first `most` of `pairs_by_finish` are those of all: of many a handful.

    times: by incarnation; the finish of a pair that shares no device has to rise with each of them.
    """
    in_place = any(d.memory for d in decode)
    prompts = [
        _Standing(w, (w.model, in_place and w.memory), times[w.incarnation], (w.load - w.reuse,))
        for w in prefill
    ]
    searches = [
        _Standing(w, (w.model, w.memory, catalog in w.catalogs), times[w.incarnation], (w.load, -w.reuse))
        for w in decode
    ]
    return _unbeaten(prompts, avoid, most), _unbeaten(searches, avoid, most)


class _Standing(NamedTuple):
    worker: Candidate
    kind: Hashable  # workers of one kind make the same pairs
    times: tuple[float, ...]
    ties: tuple[int, ...]  # what is compared where pairs finish together, before names


def _unbeaten(standings: Sequence[_Standing], avoid: Collection[int], most: int) -> list[Candidate]:
    """Those whom fewer than `most` others beat in every pair, and those that take turns with somebody.

    In the order of everything but times, who comes earlier beats who is not earlier in any time. Whoever is
    beaten too often is so by some that are not: only they need be looked at.
    """
    found: list[Candidate] = []
    kept: dict[Hashable, list[tuple[float, ...]]] = {}
    for worker, kind, times, _ in sorted(
        standings, key=lambda s: (s.worker.incarnation in avoid, s.ties, s.worker.name)
    ):
        others = kept.setdefault(kind, [])
        if worker.turns:
            found.append(worker)
        elif sum(all(map(le, other, times)) for other in others) < most:
            found.append(worker)
            others.append(times)
    return found
