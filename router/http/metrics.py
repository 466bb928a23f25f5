"""Prometheus metrics: what the router counts of requests, and what the workers report, read at scrape time.

Each application has a registry of its own, so that two in one process (as in tests) do not collide.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xgr_runtime.wire.messages import Load, WorkerHello

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS = (
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.0,
)


class WorkerReport(Protocol):
    """What of a worker's state becomes metrics."""

    @property
    def address(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def usable(self) -> bool: ...
    @property
    def hello(self) -> WorkerHello | None: ...
    @property
    def in_flight(self) -> int: ...


class RequestMetrics:
    """Requests of /generate, as the router answered them, and its workers."""

    def __init__(self, live: Callable[[], int], workers: Callable[[], Sequence[WorkerReport]]) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter("xgr_requests", "Requests by HTTP status.", ["status"], registry=registry)
        self._by_status: dict[int, Counter] = {}  # to look one up checks and locks each time
        self._seconds = Histogram(
            "xgr_request_seconds", "From arrival to answer.", buckets=LATENCY_BUCKETS, registry=registry
        )
        self._underfilled = Counter(
            "xgr_requests_underfilled", "Answers with fewer results than asked for.", registry=registry
        )
        self._prompt_tokens = Counter("xgr_prompt_tokens", "Tokens of accepted prompts.", registry=registry)
        gauge = Gauge("xgr_requests_live", "Requests accepted and not yet answered.", registry=registry)
        gauge.set_function(lambda: float(live()))
        registry.register(WorkerCollector(workers))

    def observe(self, status: int, seconds: float, prompt_tokens: int, *, underfilled: bool) -> None:
        """Count one finished request."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._requests.labels(str(status))
        counter.inc()
        self._seconds.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)
        if underfilled:
            self._underfilled.inc()

    def render(self) -> bytes:
        """All metrics in the text format of `CONTENT_TYPE`."""
        return generate_latest(self.registry)


_LOAD: dict[str, Callable[[Load], float]] = {
    "requests": lambda load: load.requests,
    "pages_used": lambda load: load.pages_used,
    "pages_cached": lambda load: load.pages_cached,
    "pages_total": lambda load: load.pages_total,
    "credits_out": lambda load: load.credits_out,
    "leases": lambda load: load.leases,
    "rows_used": lambda load: load.rows_used,
}


class WorkerCollector(Collector):
    """One series per worker and quantity, from the latest heartbeats."""

    def __init__(self, workers: Callable[[], Sequence[WorkerReport]]) -> None:
        self.workers = workers

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        states = self.workers()
        yield _gauge("alive", "1 while the worker answers.", ((s, float(s.alive)) for s in states))
        yield _gauge("usable", "1 while requests may go there.", ((s, float(s.usable)) for s in states))
        yield _gauge("in_flight", "Attempts of this router.", ((s, float(s.in_flight)) for s in states))
        for name, read in _LOAD.items():
            values = ((s, float(read(s.hello.load))) for s in states if s.hello is not None)
            yield _gauge(name, f"Load of the worker: {name}.", values)
        counters = CounterMetricFamily(
            "xgr_worker_events", "The worker's own totals, by name.", labels=[*_LABELS, "name"]
        )
        for state in states:
            for name, value in sorted(state.hello.load.counters.items()) if state.hello else ():
                counters.add_metric([*_labels(state), name], value)
        yield counters


_LABELS = ("role", "worker", "address")


def _labels(state: WorkerReport) -> list[str]:
    hello = state.hello
    return [hello.role if hello else "", hello.worker if hello else "", state.address]


def _gauge(name: str, text: str, values: Iterable[tuple[WorkerReport, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"xgr_worker_{name}", text, labels=list(_LABELS))
    for state, value in values:
        family.add_metric(_labels(state), value)
    return family
