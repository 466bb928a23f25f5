"""What a contest says: tables for people, and a line for programs."""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rival_arena import OURS, Arena, Cell

from xgr_runtime.cli.bench import facts


def show(rows: list[Cell], flop: dict[int, float], ring: Arena, rates: dict[str, float], cores: int) -> None:
    """Tables for people."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    together = f"{ring.args.at_a_time} at a time, requests/s"
    for column in (
        "width",
        "",
        "median ms",
        "ratio",
        together,
        "ratio",
        "same as ours",
        "SIDs in catalog",
        "of our SIDs",
        "overhead ms",
    ):
        table.add_column(column, justify="left" if column == "" else "right")
    ours = {cell.width: cell for cell in rows if cell.rival == OURS}
    for cell in rows:
        table.add_row(*cells(cell, ours[cell.width]))
    console.print(table)
    for width, work in flop.items():
        for name, rate in rates.items():
            median = ours[width].median
            times = f" (ours: {median * rate / work:.2f} times)" if median else ""
            console.print(
                f"arithmetic floor at width {width}: {1e3 * work / rate:.1f} ms at {rate / 1e9:.0f} GFLOP/s, "
                f"the rate of {name} on {cores} cores{times}"
            )
    for name, known in ring.facts.items():
        for line in known["cannot"]:
            console.print(f"{name} cannot {line}")
    for cell in rows:
        for reason in filter(None, (cell.why, cell.why_not_together)):
            console.print(f"{cell.rival} at width {cell.width} not measured: {reason}", markup=False)


def cells(cell: Cell, ours: Cell) -> list[str]:
    """A row of the table."""
    slower = cell.median / ours.median if cell.median and ours.median else None
    fewer = ours.per_second / cell.per_second if ours.per_second and cell.per_second else None
    return [
        str(cell.width),
        cell.rival,
        "not measured" if cell.median is None else f"{1e3 * cell.median:.1f}",
        "" if slower is None else f"{slower:.1f}",
        "not measured" if cell.per_second is None else f"{cell.per_second:.2f}",
        "" if fewer is None else f"{fewer:.1f}",
        "" if cell.rival == OURS else f"{cell.same_as_ours}/{len(cell.seconds)}",
        "" if cell.in_catalog is None else f"{cell.in_catalog:.1%}",
        "" if cell.rival == OURS or cell.of_ours is None else f"{cell.of_ours:.1%}",
        f"{1e3 * statistics.median(cell.overheads):.1f}" if cell.overheads else "",
    ]


def result(
    args: argparse.Namespace, rows: list[Cell], flop: dict[int, float], ring: Arena, rates: dict[str, float]
) -> dict[str, Any]:
    """The JSON line."""
    return {
        "machine": facts.machine(),
        "rivals": ring.facts,
        "absent": ring.absent,
        "settings": {key: value for key, value in facts.settings(vars(args)).items() if "python" not in key},
        "gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "floor_ms": {
            width: {name: round(1e3 * work / rate, 2) for name, rate in rates.items()}
            for width, work in flop.items()
        },
        "rows": [
            asdict(cell)
            | {
                "seconds": [round(s, 5) for s in cell.seconds],
                "overheads": [round(s, 5) for s in cell.overheads],
                "p50_ms": cell.median and round(1e3 * cell.median, 2),
            }
            for cell in rows
        ],
    }
