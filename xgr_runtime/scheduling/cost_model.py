"""What launches cost, learned from how long they took.

Workers fit a model to their own launches and announce it; schedulers and routers ask it what work will take.

The policy:
- A launch takes `fixed + per_token * tokens + per_pair * pairs` seconds, none of them negative.
- They are least squares of the relative error, in which a launch counts half as much `half_life` launches on.
- A launch that took over twice as long as expected counts as twice as long, and makes older ones be forgotten
  faster: a paused machine teaches little, a slower one is believed after a few dozen launches.
- Before `LEAST` launches the cost is that of a seed: launches tried at the start, and what another run of the
  same learned. How many times longer the first ones took than it says, in the median, multiplies it: a wrong
  seed is unlearnt by two launches, and one that was paused changes nothing.
- Without a seed it is unknown until then (None): whoever asks fills batches up to their capacity, drops
  nothing but what is late, and admits everybody.
- Launches of more than twice the size of any before cost as much as those at most: what was never seen has to
  run before it can be refused.
- What launches do not tell apart is split as it was before, and at first as is usual: a fifth of a launch is
  fixed, and pairs cost nothing; they grow with the square of a prompt, so noise must not pass for them.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import median, median_low
from typing import NamedTuple

from xgr_runtime.wire.messages import StepCost

LEAST = 8  # launches before the cost is known
FIXED_SHARE = 0.08  # of a launch that may be its fixed cost: where filling it further gains little

_SURPRISE = 2.0  # times the expected seconds that a launch can count for
_REACH = 2.0  # times the largest launch so far of which the cost is extrapolated
_SURE = 8.0  # how much better pairs must explain what was seen, in units of its noise (an F statistic)
_DOUBT = 8  # launches' worth of forgetting by one that surprised
_PRIOR = 1e-3  # weight of what is usual, against that of all launches
_USUAL_FIXED = 0.2  # of a typical launch
_TERMS = 3  # fixed, tokens, pairs
_SEED = 4.0  # launches' worth of what a seed says, once there are others

Vector = list[float]


class Work(NamedTuple):
    """What something asks of a worker: launches in a row, tokens (or beams) in all, pairs in all."""

    launches: int
    tokens: float
    pairs: float


class Tried(NamedTuple):
    """A launch and what it took, in seconds."""

    work: Work
    seconds: float


def prompt_work(start: int, end: int) -> Work:
    """One launch over tokens [start, end) of a prompt; each attends to itself and all before it."""
    return Work(1, end - start, (end - start) * (start + end + 1) / 2)


def beams_by_level(width: int, nodes: Sequence[int], live: int) -> list[int]:
    """The most beams that each level's selection can start from, and that can come out, [depth + 1].

    One, then what the level before can hold: no more than it has `nodes` [depth], and than leaves live.
    """
    most = min(width, live)
    return [1, *(min(most, count) for count in nodes)]


def portion_sizes(candidates: int, together: int) -> list[int]:
    """Of the portions in which candidates are scored, at most so many together; the larger ones first."""
    portions = -(-candidates // together)
    return [(candidates + portions - 1 - portion) // portions for portion in range(portions)]


def search_work(prompt_tokens: int, beams: Sequence[int]) -> Work:
    """All levels of a search, of which level i starts from `beams[i]` beams; level 0 attends to nothing."""
    rows = sum(beams)
    return Work(len(beams), rows, (rows - beams[0]) * prompt_tokens if beams else 0)


def one_by_one(works: Iterable[Work]) -> Work:
    """All of it, each with its own launches."""
    launches, tokens, pairs = 0, 0.0, 0.0
    for work in works:
        launches, tokens, pairs = launches + work.launches, tokens + work.tokens, pairs + work.pairs
    return Work(launches, tokens, pairs)


def together(works: Iterable[Work]) -> Work:
    """All of it in one launch."""
    tokens, pairs = 0.0, 0.0
    for work in works:
        tokens, pairs = tokens + work.tokens, pairs + work.pairs
    return Work(1, tokens, pairs)


def alone(cost: StepCost, work: Work) -> float:
    """Seconds of work that has its launches for itself."""
    return alone_and_shared(cost, work)[0]


def marginal(cost: StepCost, work: Work) -> float:
    """Seconds by which the work makes launches longer that run anyway."""
    reach = _REACH * work.launches
    tokens = min(work.tokens, reach * cost.most_tokens)
    return cost.per_token * tokens + cost.per_pair * min(work.pairs, reach * cost.most_pairs)


def reaches(cost: StepCost, work: Work) -> bool:
    """Whether it says what the work takes, and not only that it takes no less."""
    reach = _REACH * work.launches
    within = work.tokens <= reach * cost.most_tokens and work.pairs <= reach * cost.most_pairs
    return within and alone(cost, work) > 0


def alone_and_shared(cost: StepCost, work: Work) -> tuple[float, float]:
    """Seconds of work that has its launches for itself, and of work whose launches others fill up, with its
    part of what is fixed."""
    own, fixed = marginal(cost, work), cost.fixed * work.launches
    return fixed + own, own + min(fixed, own * FIXED_SHARE / (1 - FIXED_SHARE))


def worthwhile(cost: StepCost) -> float:
    """Marginal seconds that fill a launch: with more, its fixed cost is a small share of it."""
    return cost.fixed * (1 - FIXED_SHARE) / FIXED_SHARE


def tokens_within(cost: StepCost, start: int, seconds: float) -> int:
    """Tokens of a prompt from `start` on that make a launch longer by `seconds`; many if none do."""
    square, linear = cost.per_pair / 2, cost.per_token + cost.per_pair * start
    root = linear + math.sqrt(linear * linear + 4 * square * seconds)  # of square n² + linear n = seconds
    return int(min(2 * seconds / root, 1e9)) if root > 0 else 10**9


def scaled(cost: StepCost, factor: float) -> StepCost:
    """The same work at another speed."""
    per = (factor * cost.fixed, factor * cost.per_token, factor * cost.per_pair)
    return StepCost(*per, cost.most_tokens, cost.most_pairs)


def seed_of(tried: Sequence[Tried], remembered: StepCost | None) -> list[Tried]:
    """What to begin with: launches tried just now, and larger ones as remembered, at the speed of now."""
    if remembered is None:
        return list(tried)
    ratios = [t.seconds / alone(remembered, t.work) for t in tried if reaches(remembered, t.work)]
    now = scaled(remembered, median(ratios) if ratios else 1.0)
    tokens, pairs = remembered.most_tokens, remembered.most_pairs
    works = [Work(1, tokens / 4, pairs / 16), Work(1, tokens, 0), Work(1, tokens, pairs)]
    return [*tried, *(Tried(work, alone(now, work)) for work in works)]


class CostModel:
    """The cost of one worker's launches."""

    def __init__(self, half_life: float = 64.0) -> None:
        self.seen = 0
        self.cost: StepCost | None = None
        self._keep = 0.5 ** (1 / half_life)
        self._gram = [[0.0] * _TERMS for _ in range(_TERMS)]
        self._moment = [0.0] * _TERMS
        self._weight = 0.0
        self._seconds = 0.0  # weighted sums: the typical launch is their quotients
        self._launches = 0.0
        self._tokens = 0.0
        self._square = 0.0  # of the targets
        self._most_tokens = 0.0  # of a launch
        self._most_pairs = 0.0
        self._seed: Sequence[Tried] = ()
        self._at_first: StepCost | None = None  # as the seed has it
        self._ratios = [1.0]  # of the first launches to it

    def seed(self, launches: Sequence[Tried]) -> None:
        """Begin with what these took. Call it before any other launch; nothing tried says nothing."""
        self._seed = [t for t in launches if t.seconds > 0 and t.work.tokens > 0]
        if self._seed:
            self._add_seed(1.0)
            self.cost = self._at_first = self._fit()
            self._forget(math.inf)

    def observe(self, work: Work, seconds: float) -> None:
        """`work` has taken `seconds`: a launch, or several in a row."""
        if seconds <= 0 or work.tokens <= 0:
            return
        new = work.tokens > self._most_tokens * work.launches or work.pairs > self._most_pairs * work.launches
        first = new or self.seen < LEAST
        expected = (alone(self.cost, work) if self.cost and not first else 0.0) or seconds
        believed = min(max(seconds, expected / _SURPRISE), expected * _SURPRISE)
        self._forget(_DOUBT if believed != seconds else 1)
        self._add(work, believed, expected)
        if self._at_first and reaches(self._at_first, work):
            self._ratios.append(seconds / alone(self._at_first, work))
        self.seen += 1
        if self.seen >= LEAST:
            if self._at_first:
                self._outgrow_seed()
            self.cost = self._fit()
        elif self._at_first:
            self.cost = scaled(self._at_first, median_low(self._ratios))

    def _outgrow_seed(self) -> None:
        """From now on it is part of what was seen, at the speed that was."""
        self._add_seed(median_low(self._ratios))
        self._at_first = None

    def _add_seed(self, ratio: float) -> None:
        for work, seconds in self._seed:
            self._add(work, ratio * seconds, ratio * seconds, _SEED / len(self._seed))

    def _forget(self, launches: float) -> None:
        """As much as so many new launches make of what was seen before."""
        keep = self._keep**launches
        self._weight *= keep
        self._seconds *= keep
        self._launches *= keep
        self._tokens *= keep
        self._square *= keep
        self._moment = [keep * total for total in self._moment]
        self._gram = [[keep * total for total in row] for row in self._gram]

    def _add(self, work: Work, seconds: float, scale: float, weight: float = 1.0) -> None:
        """One more equation, in units of the seconds that were expected, so that errors are relative."""
        self._most_tokens = max(self._most_tokens, work.tokens / work.launches)
        self._most_pairs = max(self._most_pairs, work.pairs / work.launches)
        self._weight += weight
        self._seconds += weight * seconds
        self._launches += weight * work.launches
        self._tokens += weight * work.tokens
        terms, target = [term / scale for term in work], seconds / scale
        self._square += weight * target * target
        for i in range(_TERMS):
            self._moment[i] += weight * terms[i] * target
            for j in range(_TERMS):
                self._gram[i][j] += weight * terms[i] * terms[j]

    def _fixed_share(self, launches: float, tokens: float) -> float:
        """Of a typical launch: as it was once learned, for launches of one size do not tell any more."""
        if self.cost is None or not self.cost.per_token:
            return _USUAL_FIXED
        fixed = self.cost.fixed * launches
        return fixed / (fixed + self.cost.per_token * tokens)

    def _fit(self) -> StepCost:
        """The non-negative least squares, with pairs if they explain more than noise would."""
        seconds, tokens = self._seconds / self._weight, self._tokens / self._weight
        launches = self._launches / self._weight
        fixed = self._fixed_share(launches, tokens)
        usual = [fixed * seconds / launches, (1 - fixed) * seconds / tokens, 0.0]
        scales = [(self._gram[i][i] or 1.0) ** 0.5 for i in range(_TERMS)]
        gram = [[self._gram[i][j] / (scales[i] * scales[j]) for j in range(_TERMS)] for i in range(_TERMS)]
        moment = [self._moment[i] / scales[i] + _PRIOR * usual[i] * scales[i] for i in range(_TERMS)]
        for i in range(_TERMS):
            gram[i][i] += _PRIOR
        plain = _best(gram, moment, (0, 1))
        pairs = _best(gram, moment, (0, 1, 2))
        square = self._square + sum(_PRIOR * (usual[i] * scales[i]) ** 2 for i in range(_TERMS))
        noise = max(square - pairs.explained, 1e-9 * square) / self._weight
        chosen = pairs if pairs.explained - plain.explained > _SURE * noise else plain
        fixed, per_token, per_pair = (x / scale for x, scale in zip(chosen.x, scales, strict=True))
        return StepCost(fixed, per_token, per_pair, self._most_tokens, self._most_pairs)


class _Solution(NamedTuple):
    x: Vector
    explained: float  # of the sum of squares


def _best(gram: list[Vector], moment: Vector, terms: Sequence[int]) -> _Solution:
    """The non-negative least squares in some of the terms: the best of those of which all are positive."""
    best = _Solution([0.0] * len(moment), 0.0)
    for size in range(1, len(terms) + 1):
        for some in combinations(terms, size):
            x = _solved([[gram[i][j] for j in some] for i in some], [moment[i] for i in some])
            # At a minimum of a x² - 2 b x, that is -b x.
            explained = sum(value * moment[i] for value, i in zip(x, some, strict=True))
            if min(x) >= 0.0 and explained > best.explained:
                at = dict(zip(some, x, strict=True))
                best = _Solution([at.get(i, 0.0) for i in range(len(moment))], explained)
    return best


def _solved(a: list[Vector], b: Vector) -> Vector:
    """x of a x = b, for a that is symmetric and positive definite (Gauss, no pivoting needed)."""
    a, b, n = [row[:] for row in a], b[:], len(b)
    for i in range(n):
        for k in range(i + 1, n):
            factor = a[k][i] / a[i][i]
            b[k] -= factor * b[i]
            for j in range(i, n):
                a[k][j] -= factor * a[i][j]
    for i in reversed(range(n)):
        b[i] = (b[i] - sum(a[i][j] * b[j] for j in range(i + 1, n))) / a[i][i]
    return b
