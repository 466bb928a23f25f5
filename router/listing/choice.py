"""The walk over beams, best first, that decides which items are listed."""

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from router.listing.asked import Listing

Rows = NDArray[np.int64]
ValuesOf = Callable[[int], Collection[Hashable]]
"""The distinct values of the row's item that diversity counts; none where it is not limited."""


class Listed(NamedTuple):
    """What an answer lists."""

    beams: list[int]  # of its results, ascending
    rows: list[list[int]]  # of each result, at least one
    last: int | None  # the beam that filled the answer; None where beams ran out before


def choose(
    beams: Iterable[Sequence[int]], results: int, listing: Listing, values: ValuesOf | None = None
) -> Listed:
    """Items beam after beam: each is listed unless that would be one too many of its SID or of a value.

    beams [W]: the rows of each, in the order in which they are wanted; one that lists no item is no result.
    It ends with `results` results or `listing.most_items` items. So it is the one choice in which nothing is
    left out that what stands before it allows. values: needed for diversity alone.
    """
    counts: Counter[Hashable] = Counter()
    at_most = listing.diversity.at_most if listing.diversity else 0
    left = listing.most_items

    def allowed(row: int) -> bool:
        of = values(row) if values else ()
        for value in of:
            if counts[value] >= at_most:
                return False
        for value in of:
            counts[value] += 1
        return True

    listed, rows = list[int](), list[list[int]]()
    for beam, own in enumerate(beams):
        most = least_of(listing.per_sid, left)
        taken = list(own[:most]) if values is None else list(islice(filter(allowed, own), most))
        if taken:
            listed.append(beam)
            rows.append(taken)
        left = None if left is None else left - len(taken)
        if len(listed) == results or left == 0:
            return Listed(listed, rows, beam)
    return Listed(listed, rows, None)


def least_of(one: int | None, other: int | None) -> int | None:
    """The smaller bound; None is none."""
    return min((bound for bound in (one, other) if bound is not None), default=None)


def by_beam(rows: Rows, begins: Rows) -> list[list[int]]:
    """Rows that lie one beam after the other, begins [W + 1], as a list each."""
    plain = rows.tolist()
    return [plain[first:last] for first, last in pairwise(begins.tolist())]


def shuffled(
    beams: Iterable[list[int]], ids: Callable[[Sequence[int]], Sequence[str]], key: int
) -> Iterator[list[int]]:
    """The rows of each beam in an order that `key` draws, every order being as likely as any other.

    ids: of rows. An item's place depends on its id and the key alone, so what else lies on its SID, or is
    filtered from it, changes nothing about which of two items comes first.
    """

    for rows in beams:
        if len(rows) < 2:
            yield rows
            continue
        names = [name.encode() for name in ids(rows)]
        drawn = sorted((xxhash.xxh3_64_intdigest(name, key), at) for at, name in enumerate(names))
        yield [rows[at] for _, at in drawn]


def sample_key(seed: int, tokens: NDArray[np.int32]) -> int:
    """Of a request whose prompt is `tokens` [L]: requests with one seed draw differently."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens, "<i4").data, seed)
