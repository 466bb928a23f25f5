"""Which role one more of the workers should have that can take either. Plain numbers in, a decision out.

What counts is the busier side: a change has to make it less busy by a clear margin, has to be better for some
seconds, and comes some time after the one before. So one that has been made is not undone while the load
stays, and a short burst changes nothing: a change costs its worker's caches and some seconds of its work.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from xgr_runtime.wire.messages import Role

BUSY = 0.5  # share of its time that the busier side has to be at work before anything changes
GAIN = 0.85  # times as busy as before, at most, has the busier side to be after a change
SETTLE = 5.0  # seconds for which a change has to be better
REST = 30.0  # seconds between two changes
HORIZON = 10.0  # seconds in which what waits is to be done


class Side(NamedTuple):
    """The workers of one role."""

    workers: int  # that are usable
    flexible: int  # of them, those that can take the other role
    rate: float  # seconds of one worker's time that new requests ask for, per second
    waiting: float = 0.0  # seconds of work that were promised and are not done

    def busy(self, more: int = 0) -> float:
        """The share of their time for which this side's workers, and so many more, would be at work."""
        workers = self.workers + more
        return (self.rate + self.waiting / HORIZON) / workers if workers else math.inf


@dataclass(frozen=True)
class Thought:
    """What the planner keeps in mind: which change it would like, since when, and when the last one was."""

    wish: Role | None = None
    since: float = 0.0
    changed: float = -math.inf


def better(prefill: Side, decode: Side) -> Role | None:
    """The role that one more worker should have, None where nothing would be clearly better."""
    now = max(prefill.busy(), decode.busy())
    if now < BUSY:
        return None
    role: Role = "prefill" if prefill.busy() >= decode.busy() else "decode"
    gets, gives = (prefill, decode) if role == "prefill" else (decode, prefill)
    if not gives.flexible or gives.workers < 2:
        return None
    then = max(gets.busy(1), gives.busy(-1))
    return role if then <= GAIN * now else None


def think(
    before: Thought, prefill: Side, decode: Side, now: float, changing: bool
) -> tuple[Thought, Role | None]:
    """What to keep in mind now, and the role that a worker of the other one is to be told to take, if any.

    `changing`: a change is under way, whose outcome is not known yet. A side that has nobody does not wait
    for the rest after the change before.
    """
    wish = None if changing else better(prefill, decode)
    thought = before if wish == before.wish else replace(before, wish=wish, since=now)
    rest = REST if prefill.workers and decode.workers else SETTLE
    if wish is None or now - thought.since < SETTLE or now - thought.changed < rest:
        return thought, None
    return Thought(changed=now), wish
