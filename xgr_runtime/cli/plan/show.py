"""What `xgr plan` prints: mixes as they are played, the plan in a few lines, and the same as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from xgr_runtime.planning.search import MixPlan, Planner
    from xgr_runtime.planning.simulation import Mix, Played
    from xgr_runtime.planning.traffic import PlannedTraffic


class EvenSplit(NamedTuple):
    """The fewest devices of one kind, half of them for each role, that hold the promise as well."""

    mix: Mix
    price: float


def words(mix: Mix) -> str:
    """`2 x H200 as prefill, 3 x L4 as decode`."""
    return ", ".join(f"{part.devices} x {part.kind.name} as {part.role}" for part in mix)


def line(mix: Mix, played: Played, traffic: PlannedTraffic) -> str:
    """A mix that was played."""
    verdict = "[green]holds[/]" if played.keeps(traffic) else "[red]does not hold[/]"
    until = " until it was given up" if played.stopped else ""
    return f"{words(mix)}: p99 {_milliseconds(played.percentile(0.99))} ms{until}, {verdict}"


def even_split(planner: Planner, plan: MixPlan) -> EvenSplit | None:
    """The cheapest of all kinds of the plan. None where roles do not allow it, or none holds the promise."""
    from xgr_runtime.planning.search import price_of

    found = []
    for kind in {part.kind.name: part.kind for part in plan.mix}.values():
        both = "prefill" in kind.roles and "decode" in kind.roles
        if both and (mix := planner.even_split(kind)) is not None:
            found.append(EvenSplit(mix, price_of(mix)))
    return min(found, key=lambda each: each.price, default=None)


def report(plan: MixPlan, even: EvenSplit | None, traffic: PlannedTraffic) -> None:
    """For people, on stdout."""
    played, beyond = plan.played, plan.beyond
    print(f"{words(plan.mix)}: price {plan.price:g}")
    for (name, role), share in played.busy.items():
        print(f"  {name} as {role}: busy {share:.0%}")
    print(f"  router: busy {played.router:.0%} of a core")
    print(
        f"  at {traffic.rate:g}/s: p50 {_milliseconds(played.percentile(0.5))} ms, "
        f"p99 {_milliseconds(played.percentile(0.99))} ms of {traffic.slo_ms:g}, "
        f"{played.answered:.1%} answered"
    )
    print(f"  it holds up to {plan.margin * traffic.rate:.4g}/s, {plan.margin:.2f} times that")
    print(f"  what breaks first, at {plan.beyond_rate:.4g}/s: {plan.breaks}")
    print(f"    there p99 is {_milliseconds(beyond.percentile(0.99))} ms, {beyond.answered:.1%} answered")
    if even is not None:
        print(f"  an even split that holds: {words(even.mix)}: price {even.price:g}")


def as_json(plan: MixPlan, even: EvenSplit | None, traffic: PlannedTraffic) -> dict[str, Any]:
    """The same for programs."""
    return {
        "price": plan.price,
        "mix": _parts(plan.mix),
        "rate": traffic.rate,
        "slo_ms": traffic.slo_ms,
        "p50_ms": _number(1e3 * plan.played.percentile(0.5)),
        "p99_ms": _number(1e3 * plan.played.percentile(0.99)),
        "answered": plan.played.answered,
        "margin": _number(plan.margin),
        "breaks_at": _number(plan.beyond_rate),
        "breaks_first": plan.breaks,
        "busy": [
            {"device": name, "role": role, "share": _number(share)}
            for (name, role), share in plan.played.busy.items()
        ],
        "even_split": even and {"price": even.price, "mix": _parts(even.mix)},
    }


def _parts(mix: Mix) -> list[dict[str, Any]]:
    return [{"device": part.kind.name, "role": part.role, "count": part.devices} for part in mix]


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")
