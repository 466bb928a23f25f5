"""Which pair of workers serves a request. Plain data in, a decision out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Pair:
    prefill: Candidate
    decode: Candidate

    @property
    def one_device(self) -> bool:
        """Whether its two workers take turns."""
        return self.prefill.device == self.decode.device


Finish = Callable[[Pair], float]


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
    pairs = [
        Pair(p, d)
        for p in prefill
        for d in decode
        if p.model == d.model and catalog in d.catalogs and d.memory in (0, p.memory)
    ]

    def order(pair: Pair) -> tuple[int, float, int, int, int, str, str]:
        p, d = pair.prefill, pair.decode
        known_bad = (p.incarnation in avoid) + (d.incarnation in avoid)
        return known_bad, round(finish(pair), 3), p.load - p.reuse, d.load, -d.reuse, p.name, d.name

    return sorted(pairs, key=order)
