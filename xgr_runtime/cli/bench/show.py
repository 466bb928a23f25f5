"""What a run prints: a table of its points, and what a reader must not overlook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from xgr_runtime.cli.bench.measures import Point
    from xgr_runtime.cli.bench.settings import LoadSettings

FEW = 100  # answers below which p99 is nothing but the slowest


def table(points: Sequence[Point], load: LoadSettings) -> Table:
    """One row per point, in the order in which they were measured."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = ("offered/s", "answered", "refused", "failed", "p50 ms", "p90 ms", "p99 ms", "answers/s")
    compared = any(point.compared for point in points)
    columns += (f"<= {1e3 * load.slo:g} ms/s", "cached", *(("same first", "overlap") if compared else ()))
    for column in columns:
        made.add_column(column, justify="right")
    for point in points:
        made.add_row(*row(point, compared), style="" if point.keeps(load) else "dim")
    return made


def row(point: Point, compared: bool) -> list[str]:
    """The cells of a point."""
    offered = f"{point.offered:.2f}" if point.in_flight is None else f"{point.in_flight} at a time"
    cells = [
        offered,
        f"{point.answered}/{point.sent}",
        _codes(point.refused),
        _codes(point.failed),
        *(_milliseconds(value) for value in (point.p50_ms, point.p90_ms, point.p99_ms)),
        f"{point.throughput:.2f}",
        f"{point.goodput:.2f}",
        f"{point.cached_share:.0%}",
    ]
    if compared:
        cells += ["" if v is None else f"{v:.1%}" for v in (point.same_first, point.overlap)]
    return cells


def line(point: Point, load: LoadSettings) -> str:
    """A point as it is measured."""
    offered = f"{point.offered:.2f}/s" if point.in_flight is None else f"{point.in_flight} at a time"
    verdict = "[green]kept[/]" if point.keeps(load) else "[red]not kept[/]"
    return (
        f"{offered}: {point.answered} of {point.sent} answered, p50 {_milliseconds(point.p50_ms)} ms, "
        f"p99 {_milliseconds(point.p99_ms)} ms, {point.goodput:.2f}/s within the SLO: {verdict}"
    )


def highest(rate: float | None, load: LoadSettings) -> str:
    """The answer of --rate auto."""
    promise = f"p99 <= {1e3 * load.slo:g} ms and {load.answered:.1%} answered"
    return f"[bold]{rate:.2f}/s[/] kept {promise}" if rate else f"[bold]no rate[/] kept {promise}"


def remarks(console: Console, points: Sequence[Point], problems: Mapping[str, str]) -> None:
    """Whatever makes the figures mean less, or something else, than they seem to."""
    for code, message in sorted(problems.items()):
        console.print(f"[yellow]{code}:[/] {escape(message) or 'no answer'}")
    late = [point for point in points if point.late_client]
    if late:
        worst = max(point.lag_p99_ms for point in late)
        console.print(
            f"[yellow]The client was late at {len(late)} of {len(points)} points (p99 {worst:.0f} ms after "
            "the schedule): give it a core of its own, or read these latencies as its own in part.[/]"
        )
    if any(point.answered < FEW for point in points):
        console.print(f"[yellow]With fewer than {FEW} answers a p99 is the slowest one: raise --duration.[/]")
    under = sum(point.underfilled for point in points)
    if under:
        console.print(f"[bold red]{under} answers have fewer results than the catalog could fill.[/]")
    invalid, duplicate = (
        sum(getattr(p, f"{kind}_sids") for p in points) for kind in ("invalid", "duplicate")
    )
    if invalid or duplicate:
        console.print(
            f"[bold white on red] WRONG ANSWERS: {invalid} SIDs that are not in the catalog, "
            f"{duplicate} duplicates [/]"
        )


def _codes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in counts.items()) or "0"


def _milliseconds(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"
