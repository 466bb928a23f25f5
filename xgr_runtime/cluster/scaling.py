"""How many workers of a role there should be: a function of its load, no clock and no cluster in it."""

import math
from dataclasses import dataclass, replace

from xgr_runtime.wire.messages import ROWS_TOTAL, WAITING_SECONDS, WAITING_TOKENS, Load

SMOOTHING = 0.3  # weight of the newest load: one long prompt is no reason for a worker
GROW_EVERY = 15.0  # seconds; who was added has to be seen in the load first


MOST_WAITED = 2.0  # times the target, as which a wait without end counts


def prefill_load(load: Load) -> float:
    """Of one prefill worker: tokens of its prompts that are not computed."""
    return load.counters.get(WAITING_TOKENS, 0.0)


def decode_load(load: Load, target: float, wait: float) -> float:
    """Of one decode worker: the share of its rows in use; or what a request waits, if that is more.

    A wait of `wait` seconds for memory or rows counts as `target`.
    """
    rows = load.counters.get(ROWS_TOTAL, 0.0)
    waited = load.counters.get(WAITING_SECONDS, 0.0) / wait
    return max(load.rows_used / rows if rows else 0.0, target * min(waited, MOST_WAITED))


@dataclass(frozen=True)
class WorkerBounds:
    """How many there may be, and the load that one is for."""

    least: int
    most: int
    target: float
    patience: float  # seconds in which fewer would have done, before one goes


@dataclass(frozen=True)
class Scale:
    """What is wanted now, and what the next decision has to remember. Times in seconds, of any one clock."""

    wanted: int
    load: float = 0.0  # smoothed, of all workers together
    grown: float = -math.inf  # when workers were added last
    too_many: float | None = None  # since when fewer would do


def scaled(scale: Scale, load: float | None, bounds: WorkerBounds, now: float) -> Scale:
    """The next `Scale` for a load of all workers together; None where nobody knows it: then nothing changes.

    More come at once, as many as the load is for but at most twice as many, and then not for `GROW_EVERY`.
    One goes when fewer would have done for `bounds.patience` without a break.
    """
    held = min(max(scale.wanted, bounds.least), bounds.most)
    scale = replace(scale, wanted=held)
    if load is None:
        return replace(scale, too_many=None)
    smoothed = scale.load + SMOOTHING * (load - scale.load)
    scale = replace(scale, load=smoothed)
    needed = min(max(math.ceil(smoothed / bounds.target), bounds.least), bounds.most)
    if needed >= held:
        scale = replace(scale, too_many=None)
        if needed > held and now >= scale.grown + GROW_EVERY:
            return replace(scale, wanted=min(needed, 2 * held), grown=now)
        return scale
    since = now if scale.too_many is None else scale.too_many
    if now >= since + bounds.patience:
        return replace(scale, wanted=held - 1, too_many=now)
    return replace(scale, too_many=since)
