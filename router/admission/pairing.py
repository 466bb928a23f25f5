"""Which pair of workers serves a request. Plain data in, a decision out."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from xgr_runtime.wire.messages import ModelIdentity, StepCost


class Candidate(NamedTuple):
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
        turns = self.prefill.turns
        return turns != "" and turns == self.decode.turns


Finish = Callable[[Pair], float]
Times = Mapping[int, tuple[float, float]]


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
    most: int | None = None,
) -> list[Pair]:
    """The compatible pairs, those first that `finish` first; ties by load and reuse, then by name.

    Times within a millisecond are a tie. Incarnations in `avoid` (they failed this request before) come last.
    At least the first `most` of them; many are not put in order only to be left out.
    """
    found = []
    for pair in compatible(prefill, decode, catalog):
        p, d = pair
        known_bad = (p.incarnation in avoid) + (d.incarnation in avoid) if avoid else 0
        found.append((known_bad, int(finish(pair) * 1000 + 0.5), pair))
    if most is not None and len(found) > most:
        last = sorted(found, key=_TIME)[most - 1][:2]
        found = [one for one in found if one[:2] <= last]

    def order(one: tuple[int, int, Pair]) -> tuple[int, int, int, int, int, str, str]:
        known_bad, time, (p, d) = one
        return known_bad, time, p.load - p.reuse, d.load, -d.reuse, p.name, d.name

    return [pair for *_, pair in sorted(found, key=order)]


_TIME = itemgetter(0, 1)


def contenders(
    prefill: Sequence[Candidate],
    decode: Sequence[Candidate],
    catalog: str,
    avoid: Collection[int],
    times: Times,
    most: int,
) -> tuple[list[Candidate], list[Candidate]]:
    """Workers among whom the first `most` of `pairs_by_finish` are those of all: of many a handful.

    times: two by incarnation; the finish of a pair that shares no device has to rise with each of them.
    """
    in_place = any(d.memory for d in decode)
    prompts = [
        (w.incarnation in avoid, w.load - w.reuse, 0, w.name, at, (w.model, in_place and w.memory))
        for at, w in enumerate(prefill)
    ]
    searches = [
        (w.incarnation in avoid, w.load, -w.reuse, w.name, at, (w.model, w.memory, catalog in w.catalogs))
        for at, w in enumerate(decode)
    ]
    return _unbeaten(prompts, prefill, times, most), _unbeaten(searches, decode, times, most)


_Standing = tuple[bool, int, int, str, int, Hashable]
"""How pairs that finish together are ordered by one of their workers: whether it is avoided, two figures,
and its name. Then its place in the list, and its kind: workers of one kind make the same pairs."""


def _unbeaten(
    standings: Sequence[_Standing], workers: Sequence[Candidate], times: Times, most: int
) -> list[Candidate]:
    """Those whom fewer than `most` others beat in every pair, and those that take turns with somebody.

    In the order of everything but times, who comes earlier beats who is not earlier in any time. Whoever is
    beaten too often is so by some that are not: only they need be looked at.
    """
    found: list[Candidate] = []
    kept: dict[Hashable, list[tuple[float, float]]] = {}
    for *_, at, kind in sorted(standings, key=itemgetter(0, 1, 2, 3, 4)):
        worker = workers[at]
        if worker.turns:
            found.append(worker)
            continue
        others = kept.setdefault(kind, [])
        first, second = times[worker.incarnation]
        if sum([a <= first and b <= second for a, b in others]) < most:
            found.append(worker)
            others.append((first, second))
    return found
