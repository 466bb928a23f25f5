"""The cheapest mix of devices and roles that holds the promise, how much more it bears, and what breaks then.

Mixes are looked at by price, a bound of what is still missing added to those that are too small; one that
could do it is played, and the first that holds the promise is the answer.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from xgr_runtime.errors import ConfigError
from xgr_runtime.planning.bounds import Needs, highest_rate, needs, seconds_of
from xgr_runtime.planning.devices import DeviceKind, DeviceRole, Site
from xgr_runtime.planning.simulation import Mix, MixPart, Played, play
from xgr_runtime.planning.traffic import PlannedRequest, PlannedTraffic
from xgr_runtime.planning.workers import PAGE

MOST_LOOKS = 300_000  # mixes that are looked at
MOST_PARTS = 3  # of a mix: devices of one kind in one role each; with more, nobody would run it
SLACK = 1.1  # by which a mix may do better than what its devices were seen to do at their best
CLOSE = 1.04  # a rate that does not hold this little above one that does ends a search for the highest

Seen = Callable[[Mix, Played], None]


@dataclass(frozen=True)
class MixPlan:
    """`margin`: the highest rate that the mix holds, over the planned one; `beyond`: what it does above."""

    mix: Mix
    price: float
    played: Played
    margin: float
    beyond: Played
    beyond_rate: float
    breaks: str


@dataclass
class Planner:
    """Finds plans for one traffic. `seen` is called after every mix that was played."""

    kinds: Sequence[DeviceKind]
    around: Site
    traffic: PlannedTraffic
    requests: Sequence[PlannedRequest]
    most_played: int = 300
    seen: Seen = lambda mix, played: None
    need: Needs = field(init=False)

    def __post_init__(self) -> None:
        self.need = needs(self.kinds, self.traffic, self.requests, self.around)
        self.seats = [(kind, role) for kind in self.kinds for role in kind.roles]

    def play(self, mix: Mix, rate: float, to_the_end: bool = False) -> Played:
        """See `simulation.play`."""
        return play(mix, self.around, self.traffic, self.requests, rate, to_the_end)

    def cheapest(self) -> MixPlan:
        """With its margin. Raises ConfigError where no mix holds the promise, or too many were tried."""
        return self.plan(*self.find())

    def find(self) -> tuple[Mix, Played]:
        """The cheapest mix that holds the promise. Raises as `cheapest`."""
        self.check_possible()
        if len(self.seats) > 2:
            self.learn_shares()
        for played, mix in enumerate(self.by_price()):
            if played == self.most_played:
                raise ConfigError(
                    f"none of the {played} cheapest mixes that could bear the rate holds the promise: raise "
                    "slo_ms or --most-played, or offer faster devices"
                )
            found = self.play(mix, self.traffic.rate)
            self.seen(mix, found)
            if found.keeps(self.traffic):
                return mix, found
        raise ConfigError("all devices together do not hold the promise: offer more of them, or raise slo_ms")

    def learn_shares(self) -> None:
        """How much of its time each device can work in a role while the promise holds, at the very best.

        As many of it as could do all of the work alone, beside others in plenty: no mix has it better. What
        cannot hold the promise even so is offered no more. Raises ConfigError if too few are left.
        """
        for kind, role in [*self.seats]:
            if not self.complete():
                break
            mix = self.at_its_best(kind, role)
            bound = len_of(mix, kind, role) / seconds_of(self.need[kind.name, role], role)
            requests = self.requests[: max(200, len(self.requests) // 2)]
            good, bad = 0.0, bound
            for _ in range(5):
                rate = (good + bad) / 2
                found = play(mix, self.around, self.traffic, requests, rate)
                good, bad = (rate, bad) if found.keeps(self.traffic) else (good, rate)
            if not good:
                self.seats.remove((kind, role))
                continue
            self.need[kind.name, role] = self.need[kind.name, role].busy_at_most(
                min(1.0, SLACK * bad / bound)
            )
        if not self.complete():
            raise ConfigError(
                f"no device keeps slo_ms {self.traffic.slo_ms:g} however many there are: raise it, or offer "
                "faster ones"
            )

    def at_its_best(self, kind: DeviceKind, role: DeviceRole) -> Mix:
        """See `learn_shares`."""
        need = self.need
        rate = max(self.traffic.rate, 2 / seconds_of(need[kind.name, role], role))
        count = math.ceil(rate * seconds_of(need[kind.name, role], role))
        mix = [MixPart(kind, role, count)]
        if role != "pair":
            other: DeviceRole = "decode" if role == "prefill" else "prefill"
            others = [k for k in self.kinds if other in k.roles]
            quick = min(others, key=lambda k: seconds_of(need[k.name, other], other), default=None)
            if quick is None:
                return tuple(mix)
            plenty = math.ceil(1.5 * rate * seconds_of(need[quick.name, other], other))
            mix.append(MixPart(quick, other, plenty))
        return tuple(mix)

    def plan(self, mix: Mix, played: Played) -> MixPlan:
        """With its margin."""
        best, bad = self.highest(mix, self.traffic.rate)
        beyond = self.play(mix, bad, to_the_end=True)
        breaks = what_breaks(played, beyond)
        return MixPlan(mix, price_of(mix), played, best / self.traffic.rate, beyond, bad, breaks)

    def highest(self, mix: Mix, good: float = 0.0) -> tuple[float, float]:
        """The highest rate at which it holds the promise, and one just above at which it does not.

        `good`: a rate at which it does. 0: none is known, and none may be found.
        """
        rate = good * 1.25 or 0.8 * highest_rate(mix, self.need, self.around)
        bad, low = 0.0, rate / 1024
        while not bad or bad > max(good, low) * CLOSE:
            if self.play(mix, rate).keeps(self.traffic):
                good = rate
            else:
                bad = rate
            rate = (good + bad) / 2 if bad else good * 1.25
        return good, bad

    def check_possible(self) -> None:
        """Raises ConfigError where the slowest requests need more than the SLO on devices that are idle."""
        seats = {role for _, role in self.seats}
        if "pair" not in seats and not {"prefill", "decode"} <= seats:
            raise ConfigError(
                "the devices' roles need prefill and decode, or pair: nobody would do the other"
            )
        longest = max(len(request.tokens) for request in self.requests)
        widest = min(max(request.width for request in self.requests), self.traffic.items)
        for kind in self.kinds:
            if kind.kv_tokens // PAGE * PAGE < longest or kind.max_rows < widest:
                raise ConfigError(
                    f"device {kind.name} holds {kind.kv_tokens} tokens and {kind.max_rows} rows, a request "
                    f"has {longest} tokens or {widest} beams: raise kv_tokens or max_rows, or leave it out"
                )
        least = 1e3 * min(self.need[kind.name, role].quickest for kind, role in self.seats)
        if least > self.traffic.slo_ms and len(self.kinds) == 1:
            raise ConfigError(
                f"slo_ms is {self.traffic.slo_ms:g}, and one request in 100 needs {least:.1f} ms or more on "
                "an idle device: raise it, or offer faster devices"
            )

    def complete(self) -> bool:
        """Whether prompts and searches can both be done."""
        roles = {role for _, role in self.seats}
        return "pair" in roles or {"prefill", "decode"} <= roles

    def by_price(self) -> Iterator[Mix]:
        """The mixes that could bear the rate, the cheapest first; of one price, the less busy first."""
        number = itertools.count()
        waiting: list[tuple[float, float, int, tuple[int, ...], bool]] = []

        def look(counts: tuple[int, ...]) -> None:
            mix = self.mix_of(counts)
            price = price_of(mix)
            bears = highest_rate(mix, self.need, self.around) >= self.traffic.rate if mix else False
            load = self.traffic.rate / highest_rate(mix, self.need, self.around) if bears else 0.0
            missing = 0.0 if bears else self.missing(mix)
            heapq.heappush(waiting, (round(price + missing, 9), load, next(number), counts, bears))

        look((0,) * len(self.seats))
        for _ in range(MOST_LOOKS):
            if not waiting:
                return
            _, _, _, counts, bears = heapq.heappop(waiting)
            if bears and not has_idle(mix := self.mix_of(counts)):
                yield mix
            for more in self.larger(counts):
                look(more)
        raise ConfigError("there are too many mixes: offer fewer kinds of devices, or fewer roles of them")

    def larger(self, counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """One device more, of the last seat that has one or behind it: so each mix is met once."""
        last = max((at for at, count in enumerate(counts) if count), default=0)
        for at in range(last, len(counts)):
            kind = self.seats[at][0]
            used = sum(count for (k, _), count in zip(self.seats, counts, strict=True) if k is kind)
            parts = sum(count > 0 for count in counts) + (not counts[at])
            if used < kind.most and parts <= MOST_PARTS:
                yield (*counts[:at], counts[at] + 1, *counts[at + 1 :])

    def missing(self, mix: Mix) -> float:
        """What has to be paid at least for the work that is left, at the best price there is for it."""
        p = min(
            (kind.price * self.need[kind.name, r].prompts for kind, r in self.seats if r != "decode"),
            default=0.0,
        )
        d = min(
            (kind.price * self.need[kind.name, r].searches for kind, r in self.seats if r != "prefill"),
            default=0.0,
        )
        whole = self.traffic.rate * (p + d)
        for part in mix:
            need, parts = self.need[part.kind.name, part.role], []
            if part.role != "decode":
                parts.append(p / seconds_of(need, "prefill"))
            if part.role != "prefill":
                parts.append(d / max(need.searches, 1e-12))
            whole -= part.devices * max(parts)
        return max(0.0, whole)

    def mix_of(self, counts: Sequence[int]) -> Mix:
        return tuple(
            MixPart(kind, role, count)
            for (kind, role), count in zip(self.seats, counts, strict=True)
            if count
        )

    def even_split(self, kind: DeviceKind) -> Mix | None:
        """The fewest devices of a kind, as many for prompts as for searches, that hold the promise.

        None if none do.
        """
        for count in range(1, kind.most // 2 + 1):
            mix = (MixPart(kind, "prefill", count), MixPart(kind, "decode", count))
            enough = highest_rate(mix, self.need, self.around) >= self.traffic.rate
            if enough and self.play(mix, self.traffic.rate).keeps(self.traffic):
                return mix
        return None


def len_of(mix: Mix, kind: DeviceKind, role: DeviceRole) -> int:
    """How many devices of that kind have that role."""
    return sum(part.devices for part in mix if part.kind is kind and part.role == role)


def has_idle(mix: Mix) -> bool:
    """Whether some of it has nothing to do: a pair reads no prompts but its own."""
    roles = {part.role for part in mix}
    return "prefill" in roles and "decode" not in roles


def price_of(mix: Mix) -> float:
    """Of all its devices."""
    return round(sum(part.devices * part.kind.price for part in mix), 6)


_FIRST: dict[str, tuple[str, tuple[DeviceRole, ...]]] = {
    "router": ("the router's core", ()),
    "prefill queue": ("prompts wait for devices that take them", ("prefill", "pair")),
    "prefill": ("prompts take longer, in shared forwards", ("prefill", "pair")),
    "KV hand-over": ("KV waits for memory of decode devices, or for the link to them", ("decode",)),
    "rows": ("searches wait for rows of devices that run them", ("decode", "pair")),
    "search": ("searches wait for their steps", ("decode", "pair")),
}


def what_breaks(within: Played, beyond: Played) -> str:
    """The stage in which the slowest answers lost most, compared with the planned rate."""
    if not beyond.slowest:
        return "all of it: nothing is answered"
    grown = {stage: beyond.slowest[stage] - within.slowest.get(stage, 0.0) for stage in beyond.slowest}
    stage = max(grown, key=lambda each: grown[each])
    words, roles = _FIRST[stage]
    if stage == "router":
        return f"{words}, busy {beyond.router:.0%}"
    busy = [f"{name} as {role} {share:.0%}" for (name, role), share in beyond.busy.items() if role in roles]
    return f"{words} ({', '.join(busy)} busy), {1e3 * grown[stage]:.1f} ms more"
