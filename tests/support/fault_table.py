"""The table of the fault suite: what callers saw in each case, what leaked, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crowd import Outcome, Tally

FILE = Path(__file__).resolve().parents[2] / ".cache" / "faults.md"
HEADINGS = (
    "case",
    "requests",
    "correct",
    "refused",
    "left",
    "wrong",
    "lost",
    "leaks",
    "answers again after (s)",
    "whole again after (s)",
)


@dataclass
class Row:
    """One case. Seconds count from the fault: to an answer, and to all workers being usable."""

    case: str
    tally: Tally
    leaks: list[str] = field(default_factory=list)
    answered: float | None = None
    whole: float | None = None
    finished: bool = False

    def cells(self) -> list[str]:
        counts = self.tally.counts
        numbers = [len(self.tally.records), *(counts[outcome] for outcome in _COLUMNS), len(self.leaks)]
        return [self.case, *map(str, numbers), _seconds(self.answered), _seconds(self.whole)]


_COLUMNS = (Outcome.CORRECT, Outcome.REFUSED, Outcome.LEFT, Outcome.WRONG, Outcome.LOST)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@dataclass
class FaultTable:
    """All cases of a run. `cold_start`: seconds that the whole deployment took to start."""

    rows: list[Row] = field(default_factory=list)
    cold_start: float = 0.0

    def lines(self) -> list[str]:
        """As Markdown, columns aligned."""
        cells = [list(HEADINGS), *(row.cells() for row in self.rows if row.finished)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
        lines = [_line(row, widths) for row in cells]
        rule = [
            "-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)
        ]
        return [lines[0], _line(rule, widths), *lines[1:], "", f"A cold start took {self.cold_start:.1f} s."]

    def write(self) -> None:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text("\n".join(self.lines()) + "\n")


def _line(cells: list[str], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
