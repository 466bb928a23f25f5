"""What a run is asked to do, parsed and checked once; the parts of the benchmark get it frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xgr_runtime.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MOST_AT_ONCE = 1e6  # requests per second, or in flight
TrafficKind = Literal["random", "histories", "sessions"]


@dataclass(frozen=True)
class Widths:
    """Beam widths and the share of requests that ask for each; shares sum to 1."""

    widths: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Widths:
        """`128`, or a mix such as `50:0.8,512:0.2`, whose weights are scaled to sum to 1."""
        pairs = [part.partition(":") for part in text.split(",")]
        try:
            widths = tuple(int(width) for width, _, _ in pairs)
            weights = [float(weight) if colon else 1.0 for _, colon, weight in pairs]
        except ValueError:
            raise ConfigError(
                f"--beam-width is {text!r}: write 128, or a mix such as 50:0.8,512:0.2"
            ) from None
        sound = all(0 < weight < math.inf for weight in weights)
        if min(widths) < 1 or max(widths) >= 1 << 31 or not sound:
            raise ConfigError(f"--beam-width is {text!r}: widths and shares must be numbers above 0")
        return cls(widths, tuple(weight / sum(weights) for weight in weights))


@dataclass(frozen=True)
class TrafficSettings:
    """What is asked, as opposed to how often."""

    kind: TrafficKind = "random"
    prompt_tokens: int = 512
    histories: Path | None = None
    users: int = 1000  # that may return
    known: int = 32  # who were here before the first point
    zipf: float = 1.0  # exponent of their popularity
    returning: float = 0.9  # share of requests by users who were here before
    new_items: int = 1  # that a returning user has taken since
    window_step: int | None = None  # of the template whose window slides; None: users cut long histories
    widths: Widths = Widths((50,), (1.0,))
    n: int | None = None
    timeout_ms: int | None = None
    priority: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class LoadSettings:
    """How one point is measured, and what counts as kept promises."""

    duration: float = 20.0  # seconds that are measured
    warm_up: float = 2.0  # seconds of the same load before
    burstiness: float = 1.0
    slo: float = 0.2  # seconds
    answered: float = 0.99  # share of the requests that must be answered
    seed: int = 0


@dataclass(frozen=True)
class SearchSettings:
    """Of the search for the highest rate."""

    start: float = 1.0  # requests per second
    lowest: float = 0.0  # below, a run has too few requests to tell
    most_runs: int = 12
    close: float = 1.05  # a bad rate this little above a good one ends it


def parse_numbers(text: str, name: str) -> list[float]:
    """`2,4,8` -> [2.0, 4.0, 8.0]. Raises ConfigError naming the flag."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= MOST_AT_ONCE for number in numbers):
        raise ConfigError(f"{name} is {text!r}: write numbers above 0, such as 2,4,8, a million at most")
    return numbers
