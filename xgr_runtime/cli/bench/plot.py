"""The picture of a sweep: latency percentiles, and answers per second, against the rate that was offered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgr_runtime.cli.bench.target import need_extra
from xgr_runtime.files import writing_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgr_runtime.cli.bench.measures import Point
    from xgr_runtime.cli.bench.settings import LoadSettings


def save_plot(points: Sequence[Point], load: LoadSettings, path: Path) -> None:
    """A PNG of two panels. Raises `ConfigError`."""
    need_extra("matplotlib").use("Agg")  # draws into files only; needs no screen
    from matplotlib import pyplot

    ordered = sorted((p for p in points if p.answered), key=lambda p: p.offered)
    offered = [p.offered for p in ordered]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 7), layout="constrained")
    for name in ("p50", "p90", "p99"):
        above.plot(offered, [getattr(p, f"{name}_ms") for p in ordered], marker="o", label=name)
    above.axhline(1e3 * load.slo, color="grey", linestyle="--", label="SLO")
    above.set(yscale="log", ylabel="latency from the scheduled send, ms")
    below.plot(offered, [p.goodput for p in ordered], marker="o", label=f"within {1e3 * load.slo:g} ms")
    below.plot(offered, [p.throughput for p in ordered], marker="o", label="all answers")
    below.axline((0, 0), slope=1, color="grey", linestyle="--", label="offered")
    below.set(
        xlabel="requests offered per second", ylabel="answers per second", xlim=(0, None), ylim=(0, None)
    )
    for panel in (above, below):
        panel.grid(alpha=0.3)
        panel.legend()
    with writing_whole(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    pyplot.close(figure)
