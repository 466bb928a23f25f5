"""What a mix can do at most, before it is played: all its devices at work, and launches filled.

A mix that is too little even so is not looked at. That is all bounds are for: what is promised is played.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xgr_runtime.planning.devices import DeviceKind, DeviceRole, Site
from xgr_runtime.planning.simulation import Mix
from xgr_runtime.planning.traffic import PlannedRequest, PlannedTraffic
from xgr_runtime.scheduling.cost_model import alone, marginal, prompt_work, search_work

SAMPLE = 500  # requests that stand for all


@dataclass(frozen=True)
class Need:
    """Seconds that a request takes of a device, in the mean: of prompts, of searches, of its link."""

    prompts: float
    searches: float
    link: float
    quickest: float  # that the slowest hundredth of requests need at least, alone

    def busy_at_most(self, share: float) -> Need:
        """That of a device which can work no larger share of its time."""
        return Need(self.prompts / share, self.searches / share, self.link / share, self.quickest)


Seat = tuple[DeviceKind, DeviceRole]
Needs = dict[tuple[str, DeviceRole], Need]
"""By device and role."""


def needs(
    kinds: Sequence[DeviceKind],
    traffic: PlannedTraffic,
    requests: Sequence[PlannedRequest],
    around: Site,
) -> Needs:
    """Of devices that are always at work."""
    some = requests[-SAMPLE:]
    found = _found(requests)[-SAMPLE:]
    each = {kind: _need(kind, traffic, some, found, around) for kind in kinds}
    return {(kind.name, role): need for kind, need in each.items() for role in kind.roles}


def _need(
    kind: DeviceKind,
    traffic: PlannedTraffic,
    requests: Sequence[PlannedRequest],
    found: Sequence[int],
    around: Site,
) -> Need:
    prompts, searches, link, single = [], [], [], []
    p_cost, d_cost = kind.speed.prefill_cost, kind.speed.decode_cost
    for request, cached in zip(requests, found, strict=True):
        tokens = len(request.tokens)
        prompt = prompt_work(min(cached, tokens - 1), tokens)
        search = search_work(tokens, traffic.beams(request.width))
        prompts.append(marginal(p_cost, prompt))
        searches.append(marginal(d_cost, search))
        link.append((tokens - cached) * kind.token_bytes / around.link)
        single.append(alone(p_cost, prompt) + alone(d_cost, search))
    quickest = sorted(single)[max(0, math.ceil(0.99 * len(single)) - 1)]
    return Need(_mean(prompts), _mean(searches), _mean(link), quickest + around.overhead + around.router)


def _found(requests: Sequence[PlannedRequest]) -> list[int]:
    """Tokens that each prompt has in common with an earlier one, if nothing is ever dropped."""
    before: dict[int, np.ndarray] = {}  # the longest prompt of each first token, which users do not share
    found = []
    for request in requests:
        first = int(request.tokens[0])
        earlier = before.get(first)
        found.append(0 if earlier is None else min(len(earlier), len(request.tokens)))
        if earlier is None or len(earlier) < len(request.tokens):
            before[first] = request.tokens
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def highest_rate(mix: Mix, need: Needs, around: Site) -> float:
    """Requests per second that the mix cannot exceed."""
    prompts, searches = _rate(mix, need, "prefill"), _rate(mix, need, "decode")
    pairs = [part for part in mix if part.role == "pair"]
    router = 1 / around.router if around.router else math.inf
    if not pairs:
        return min(router, prompts, searches)
    count = sum(part.devices for part in pairs)  # each as fast as the best of them
    p = max(min(need[part.kind.name, part.role].prompts for part in pairs), 1e-12)
    d = max(min(need[part.kind.name, part.role].searches for part in pairs), 1e-12)
    # A pair searches only over prompts of its own; what time it has it may compute prompts for others.
    others = min(searches, prompts + count / p)
    own = (count - max(0.0, others - prompts) * p) / (p + d)
    return min(router, others + own)


def _rate(mix: Mix, need: Needs, role: DeviceRole) -> float:
    return sum(
        part.devices / seconds_of(need[part.kind.name, part.role], role) for part in mix if part.role == role
    )


def seconds_of(need: Need, role: DeviceRole) -> float:
    """Of a device in that role, for a request."""
    if role == "prefill":
        return max(need.prompts, 1e-12)
    if role == "decode":
        return max(need.searches, need.link, 1e-12)
    return max(need.prompts + need.searches, 1e-12)
