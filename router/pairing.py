"""Which pair of workers serves a request. Plain data in, a decision out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from xgr_runtime.messages import ModelIdentity


@dataclass(frozen=True)
class Candidate:
    """A worker as pairing sees it. `load` counts what this router has under way there, in its own unit:
    prompt tokens for prefill, beams for decode."""

    name: str
    incarnation: int
    model: ModelIdentity
    load: int
    catalogs: Collection[str] = ()


@dataclass(frozen=True)
class Pair:
    prefill: Candidate
    decode: Candidate


def choose_pair(
    prefill: Sequence[Candidate],
    decode: Sequence[Candidate],
    catalog: str,
    avoid: Collection[int] = (),
) -> Pair | None:
    """The least loaded compatible pair, ties by name; None when no pair is compatible.

    Incarnations in `avoid` (they failed this request before) are taken only when nothing else is left.
    """
    pairs = [Pair(p, d) for p in prefill for d in decode if p.model == d.model and catalog in d.catalogs]

    def cost(pair: Pair) -> tuple[int, int, int, str, str]:
        p, d = pair.prefill, pair.decode
        known_bad = (p.incarnation in avoid) + (d.incarnation in avoid)
        return known_bad, p.load, d.load, p.name, d.name

    return min(pairs, key=cost, default=None)
