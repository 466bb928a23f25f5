"""What /metrics says of changes of the catalog."""

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

VISIBLE_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)


class CatalogFigures(Collector):
    """Counted here, or read at scrape time."""

    def __init__(
        self,
        versions: Callable[[], int],
        bytes_sent: Callable[[], int],
        broken_chains: Callable[[], int],
        conditions: Callable[[], tuple[int, int]],
    ) -> None:
        """`conditions`: evaluated, and found ready."""
        self._visible = Histogram(
            "xgr_catalog_visible_seconds",
            "From the call that changes the catalog until requests of this router use the version.",
            ["kind"],
            buckets=VISIBLE_BUCKETS,
            registry=None,
        )
        self._changes = Counter(
            "xgr_catalog_changes",
            "Changes of the catalog, by kind and outcome.",
            ["kind", "outcome"],
            registry=None,
        )
        self._versions = versions
        self._bytes_sent = bytes_sent
        self._broken_chains = broken_chains
        self._conditions = conditions

    def in_use(self, kind: str, seconds: float) -> None:
        """Requests use a version from now on."""
        self._visible.labels(kind).observe(seconds)

    def changed(self, kind: str, outcome: str) -> None:
        """A change is `kept` or `refused`."""
        self._changes.labels(kind, outcome).inc()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield from self._visible.collect()
        yield from self._changes.collect()
        held = GaugeMetricFamily("xgr_catalog_versions", "Versions of the catalog that this router holds.")
        held.add_metric([], float(self._versions()))
        yield held
        evaluated, reused = self._conditions()
        for name, text, value in (
            (
                "xgr_catalog_bytes_sent",
                "Bytes of batches and files sent to decode workers.",
                self._bytes_sent(),
            ),
            (
                "xgr_catalog_broken_chains",
                "Versions that a worker could not reach by batches.",
                self._broken_chains(),
            ),
            ("xgr_filters_evaluated", "Conditions of filters that this router evaluated.", evaluated),
            ("xgr_filters_reused", "Conditions that were ready already.", reused),
        ):
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], float(value))
            yield counter
