"""When those who are refused may come again: once missing workers are back, as far as is known."""

from collections.abc import Sequence

from router.job import WorkerState
from xgr_runtime.wire.messages import Role


def seconds_to_a_pair(states: Sequence[WorkerState]) -> float:
    """Until there is a worker of each role again; zero where nothing is known, or nobody is missing."""
    return max(_seconds_to_one([state for state in states if state.role == role]) for role in _ROLES)


def seconds_to_start(states: Sequence[WorkerState]) -> float:
    """That a deployment needs to start: its workers do so side by side."""
    return max((state.start_seconds for state in states), default=0.0)


_ROLES: tuple[Role, ...] = ("prefill", "decode")


def _seconds_to_one(states: Sequence[WorkerState]) -> float:
    """One that was never here is taken to start like the slowest of the others."""
    if any(state.usable for state in states):
        return 0.0
    usual = seconds_to_start(states)
    return min((max(0.0, (s.start_seconds or usual) - s.away) for s in states if not s.alive), default=0.0)
