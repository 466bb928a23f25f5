"""The synthetic shop of the demo: items with three-level SIDs, and histories of users with planted tastes.

It stands in for a real catalog, which the project does not ship. A model can learn here what a real one
learns: which products go together, that a user stays with a maker, and what is popular within a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xgr_runtime.cli.demo import words
from xgr_runtime.errors import ConfigError

DEPTH = 3
SHORTEST, LONGEST = 6, 20  # items in a user's sequence, the held-out one included
STAY, COMPLEMENT = 0.45, 0.30  # same product again, what goes with it; else one of the user's tastes
KEEP_MAKER = 0.5  # when the next product has an item by the maker just bought
TASTES = 3
DEPARTMENT = len(words.DEPARTMENTS[0])

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShopSettings:
    """Everything that decides the generated data; the same settings give the same bytes."""

    items: int = 20_000
    users: int = 16_000
    codebook: int = 256
    shared_sids: float = 0.03  # share of the items that take the SID of another one
    seed: int = 7

    def __post_init__(self) -> None:
        if self.items < 100 or self.users < 10:
            raise ConfigError("the demo needs at least 100 items and 10 users: raise --items or --users")
        if not 16 <= self.codebook <= len(words.PRODUCTS):
            raise ConfigError(f"codebook must lie between 16 and {len(words.PRODUCTS)}, not {self.codebook}")


@dataclass(frozen=True)
class Shop:
    """Items are numbered 0 .. N-1 in SID order; users' sequences are cut before the held-out next item."""

    codes: IntArray  # [N, DEPTH], rows in ascending order
    titles: list[str]
    popularity: IntArray  # [N] times each item stands in `histories`
    histories: list[IntArray]
    next_items: IntArray  # [users]


def generate(settings: ShopSettings) -> Shop:
    """Draws the items, then every user's sequence."""
    draw = np.random.default_rng(settings.seed)
    codes = draw_codes(settings, draw)
    sequences = _Walk(codes, settings, draw).run()
    lengths = draw.integers(SHORTEST, LONGEST, settings.users, endpoint=True)
    histories = [sequence[: length - 1] for sequence, length in zip(sequences, lengths, strict=True)]
    return Shop(
        codes=codes,
        titles=_titles(codes),
        popularity=np.bincount(np.concatenate(histories), minlength=len(codes)),
        histories=histories,
        next_items=sequences[np.arange(settings.users), lengths - 1],
    )


def draw_codes(settings: ShopSettings, draw: np.random.Generator) -> IntArray:
    """SIDs [items, DEPTH] in ascending order: products and makers of skewed size, numbered variants."""
    products = _products(settings)
    repeats = int(settings.items * settings.shared_sids)
    product = draw.choice(products, settings.items - repeats, p=zipf(products, 0.5))
    # Each product has its own makers, drawn from the same few well-known ones: real tries are bushy here.
    maker = draw.choice(settings.codebook, settings.items - repeats, p=zipf(settings.codebook, 1.0))
    pairs, group = np.unique(product * settings.codebook + maker, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(pairs)))
    variant = draw.integers(0, settings.codebook, len(pairs))[group]
    variant[order] += np.arange(len(group)) - starts[group[order]]
    fresh = np.stack([product, maker, variant % settings.codebook], axis=1)
    codes = np.concatenate([fresh, fresh[draw.integers(0, len(fresh), repeats)]])
    return codes[np.lexsort(codes.T[::-1])]


def zipf(count: int, exponent: float) -> FloatArray:
    """Probabilities [count] of ranks 1 .. count, proportional to rank ** -exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    shares: FloatArray = weights / weights.sum()
    return shares


def _products(settings: ShopSettings) -> int:
    """How many products the shop sells: few enough that each has some tens of items to choose from."""
    return min(settings.codebook, max(DEPARTMENT, settings.items // 64))


def _titles(codes: IntArray) -> list[str]:
    """Items that share a SID are lots of the same thing; the later ones say so."""
    lots: dict[tuple[int, ...], int] = {}
    titles = []
    for row in codes.tolist():
        lot = lots[tuple(row)] = lots.get(tuple(row), 0) + 1
        titles.append(words.title(*row) + (f" (lot {lot})" if lot > 1 else ""))
    return titles


class _Walk:
    """All users' sequences at once, one step of all users at a time."""

    def __init__(self, codes: IntArray, settings: ShopSettings, draw: np.random.Generator) -> None:
        self.draw = draw
        self.users = settings.users
        self.products = _products(settings)
        self.codebook = settings.codebook
        self.codes = codes
        self.lines = codes[:, 0] * settings.codebook + codes[:, 1]  # [N] ascending
        # A running sum over items in SID order lets one search draw from any product or maker by weight.
        self.running = np.concatenate([[0.0], np.cumsum(self._weights())])

    def run(self) -> IntArray:
        """Item numbers [users, LONGEST]."""
        tastes = self.draw.choice(self.products, (self.users, TASTES), p=zipf(self.products, 0.5))
        columns = [self._pick(tastes[:, 0], np.full(self.users, -1), [])]
        for _ in range(LONGEST - 1):
            product, maker = self._intent(columns[-1], tastes)
            columns.append(self._pick(product, maker, columns))
        return np.stack(columns, axis=1)

    def _weights(self) -> FloatArray:
        """Item weights [N]: Zipf within each product, in random order."""
        weights = np.empty(len(self.codes))
        for product in range(self.products):
            lo, hi = np.searchsorted(self.codes[:, 0], [product, product + 1])
            weights[lo:hi] = self.draw.permutation(zipf(int(hi - lo), 1.4)) if hi > lo else 0.0
        return weights

    def _intent(self, last: IntArray, tastes: IntArray) -> tuple[IntArray, IntArray]:
        """What each user looks for next: a product, and a maker or -1."""
        current, maker = self.codes[last, 0], self.codes[last, 1]
        taste = tastes[np.arange(self.users), self.draw.integers(0, TASTES, self.users)]
        mood = self.draw.random(self.users)
        elsewhere = np.where(mood < STAY + COMPLEMENT, self._goes_with(current), taste)
        product = np.where(mood < STAY, current, elsewhere)
        return product, np.where(self.draw.random(self.users) < KEEP_MAKER, maker, -1)

    def _goes_with(self, product: IntArray) -> IntArray:
        """The next product of the same department, now and then the one after it."""
        step = 1 + (self.draw.random(self.users) < 0.25)
        department = product - product % DEPARTMENT
        neighbour: IntArray = department + (product % DEPARTMENT + step) % DEPARTMENT
        return np.minimum(neighbour, self.products - 1)

    def _pick(self, product: IntArray, maker: IntArray, seen: list[IntArray]) -> IntArray:
        """One item a user by weight, from the maker's items of the product where there are any."""
        line = product * self.codebook + maker
        lo, hi = np.searchsorted(self.lines, line), np.searchsorted(self.lines, line + 1)
        first, end = (
            np.searchsorted(self.codes[:, 0], product),
            np.searchsorted(self.codes[:, 0], product + 1),
        )
        anyone = (maker < 0) | (lo == hi)
        item = self._weighted(np.where(anyone, first, lo), np.where(anyone, end, hi))
        for _ in range(3):  # users rarely take the same thing twice; then another maker's will do
            again = np.any([item == past for past in seen], axis=0) if seen else np.zeros(self.users, bool)
            item = np.where(again, self._weighted(first, end), item)
        return item

    def _weighted(self, lo: IntArray, hi: IntArray) -> IntArray:
        """An item from each range [lo, hi), by weight."""
        low, high = self.running[lo], self.running[hi]
        found = (
            np.searchsorted(self.running, low + self.draw.random(self.users) * (high - low), side="right") - 1
        )
        item: IntArray = np.clip(found, lo, hi - 1)
        return item
