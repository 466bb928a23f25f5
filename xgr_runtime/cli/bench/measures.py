"""From single requests to the figures of one point: percentiles, rates, and what went wrong."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xgr_runtime.cli.bench.judge import Verdict
    from xgr_runtime.cli.bench.settings import LoadSettings

ANSWERED = "200"
REFUSED = ("503", "504")  # the deployment said in time, or too late, that it could not
LATE = 0.05  # of the SLO; a client that sends later than that is part of what it measures


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times are in seconds from the beginning of its point.

    code: the HTTP status, or what happened instead: timeout, connection, unreadable.
    """

    scheduled: float
    sent: float
    done: float
    code: str
    verdict: Verdict | None = None

    @property
    def latency(self) -> float:
        """From the scheduled send: waiting for a slow client counts as well."""
        return self.done - self.scheduled


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank); nan of nothing."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else math.nan


@dataclass(frozen=True)
class Point:
    """One load and what came of it. Requests that were due in the measured seconds count.

    `throughput` and `goodput`: answers, and answers within the SLO, that came in these seconds, per second.
    """

    offered: float  # requests per second asked for; of a closed loop what it came to
    in_flight: int | None  # None: an open loop
    seconds: float  # that were measured
    sent: int
    answered: int
    refused: dict[str, int]
    failed: dict[str, int]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    goodput: float
    underfilled: int  # answers with fewer results than the catalog could fill
    invalid_sids: int
    duplicate_sids: int
    cached_share: float  # of prompt tokens
    compared: int  # answers whose prompt is in the reference
    same_first: float | None  # share of these
    overlap: float | None
    lag_p99_ms: float  # how late requests were sent
    late_client: bool
    client_ms: float  # processor time of this client per request
    interrupted: bool = False

    @property
    def wrong_sids(self) -> int:
        return self.invalid_sids + self.duplicate_sids

    def keeps(self, load: LoadSettings) -> bool:
        """p99 within the SLO, and all answered but the share that may be missing."""
        enough = self.answered >= load.answered * self.sent
        return self.sent > 0 and enough and self.p99_ms <= 1e3 * load.slo


def summarise(
    samples: Sequence[Sample],
    load: LoadSettings,
    rate: float | None,
    in_flight: int | None = None,
    client_seconds: float = 0.0,
    stopped: float | None = None,
) -> Point:
    """The point that `samples` make; `stopped`: when it was interrupted, in seconds from its beginning."""
    first = load.warm_up
    seconds = load.duration if stopped is None else min(load.duration, max(stopped - first, 1e-9))
    counted = [s for s in samples if first <= s.scheduled < first + seconds]
    answered = [s for s in counted if s.code == ANSWERED]
    latencies = sorted(s.latency for s in answered)
    lags = sorted(s.sent - s.scheduled for s in counted)
    done = [s for s in samples if s.code == ANSWERED and first <= s.done < first + seconds]
    codes = Counter(s.code for s in counted)
    return Point(
        offered=rate if rate is not None else len(counted) / seconds,
        in_flight=in_flight,
        seconds=seconds,
        sent=len(counted),
        answered=len(answered),
        refused={code: codes[code] for code in REFUSED if codes[code]},
        failed={c: n for c, n in sorted(codes.items()) if c not in (ANSWERED, *REFUSED)},
        p50_ms=1e3 * percentile(latencies, 0.5),
        p90_ms=1e3 * percentile(latencies, 0.9),
        p99_ms=1e3 * percentile(latencies, 0.99),
        throughput=len(done) / seconds,
        goodput=sum(s.latency <= load.slo for s in done) / seconds,
        lag_p99_ms=1e3 * percentile(lags, 0.99),
        late_client=bool(lags) and percentile(lags, 0.99) > LATE * load.slo,
        client_ms=1e3 * client_seconds / max(1, len(samples)),
        interrupted=stopped is not None,
        **_quality([s.verdict for s in answered if s.verdict], [s.verdict for s in samples if s.verdict]),
    )


def _quality(counted: Sequence[Verdict], every: Sequence[Verdict]) -> dict[str, Any]:
    """Wrong SIDs count wherever they come, in warm-up too."""
    agreements = [v.agreement for v in counted if v.agreement]
    prompt_tokens = sum(v.prompt_tokens for v in counted)
    return {
        "underfilled": sum(v.missing > 0 for v in counted),
        "invalid_sids": sum(v.invalid for v in every),
        "duplicate_sids": sum(v.duplicates for v in every),
        "cached_share": sum(v.cached_tokens for v in counted) / max(1, prompt_tokens),
        "compared": len(agreements),
        "same_first": _mean([float(a.first) for a in agreements]),
        "overlap": _mean([a.overlap for a in agreements]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
