"""Everything that is known by the time a run ends, however it ends, and how it is said."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from xgr_runtime.cli.bench import facts, show
from xgr_runtime.cli.bench.plot import save_plot

if TYPE_CHECKING:
    import argparse

    from xgr_runtime.cli.bench.measures import Point
    from xgr_runtime.cli.bench.run import Run
    from xgr_runtime.cli.bench.settings import LoadSettings


class Report:
    """Filled while the run goes on."""

    def __init__(self, args: argparse.Namespace, load: LoadSettings) -> None:
        self.args, self.load = args, load
        # A table that goes into a file is not cut to the width of a terminal that nobody looks at.
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
        self.run: Run | None = None
        self.server: dict[str, str] = {}
        self.max_rate: float | None = None
        self.interrupted = False

    def progress(self, point: Point) -> None:
        """A point was measured."""
        self.console.print(show.line(point, self.load))

    def write(self) -> int:
        """Prints table, remarks and last the JSON line, draws the plot; the exit code."""
        points = self.run.points if self.run else []
        self.console.print()
        self.console.print(show.table(points, self.load))
        show.remarks(self.console, points, self.run.problems if self.run else {})
        if self.args.rate == "auto" and not self.interrupted:
            self.console.print(show.highest(self.max_rate, self.load))
        if self.args.plot and points:
            save_plot(points, self.load, self.args.plot)
        print(json.dumps(self._line(points)), flush=True)
        wrong = any(point.wrong_sids for point in points)
        if self.interrupted and not wrong:
            return 130
        return int(wrong or not any(point.answered for point in points))

    def _line(self, points: list[Point]) -> dict[str, object]:
        return {
            "machine": facts.machine(),
            "versions": facts.versions(),
            "server": self.server,
            "settings": facts.settings(vars(self.args)),
            "max_rate": self.max_rate,
            "interrupted": self.interrupted,
            "points": facts.figures(points),
        }
