"""What a run found: JSON lines, each written as soon as it is known, so that a killed run keeps them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "results.jsonl"


@dataclass
class Figures:
    """What one test measures. A goal that is missed is shown, and is no failure."""

    folder: Path
    test: str
    times: list[tuple[float, str]] = field(default_factory=list)  # seconds, what; of this test

    def time(self, what: str, seconds: float, floor: float | None = None, **more: Any) -> None:
        """A measured time, and how it stands to its floor."""
        self.times.append((seconds, what))
        known = {} if floor is None else {"floor": floor, "ratio": seconds / floor}
        self.note(what, seconds=seconds, **known, **more)

    def note(self, what: str, **facts: Any) -> None:
        """Anything else worth a line."""
        self._append({"figure": what, **facts})

    def goal(self, what: str, value: float, bound: float, least: bool = False) -> None:
        """A figure that is to be at most `bound`, or at least."""
        met = bool(value >= bound if least else value <= bound)
        self._append({"goal": what, "value": value, "bound": bound, "least": least, "met": met})

    def _append(self, line: dict[str, Any]) -> None:
        append(self.folder, {"test": self.test, **line})


@dataclass
class Results:
    """All lines of a file, by kind; of what was found twice the later."""

    headers: list[dict[str, Any]] = field(default_factory=list)  # one of each process that had the device
    planned: list[str] = field(default_factory=list)
    smoke: bool = False  # whether what is planned is of toy sizes
    figures: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by test and name
    goals: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)  # of a test: passed or failed
    failures: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # tests that cannot run here, and why

    @property
    def missing(self) -> list[str]:
        """Planned tests without an outcome, which could have had one."""
        return [name for name in self.planned if name not in self.outcomes and name not in self.skipped]


def append(folder: Path, line: dict[str, Any]) -> None:
    """One line, at once."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=str) + "\n")


def read(folder: Path) -> Results:
    """The results in a folder; none if it has no file. Raises ValueError."""
    found, path = Results(), folder / FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _add(found, json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number} is no result ({error!r}): take another folder") from None
    return found


def _add(found: Results, line: dict[str, Any]) -> None:
    if "header" in line:
        found.headers.append(line["header"])
    elif "planned" in line:
        found.smoke = line["smoke"]
        found.planned += [name for name in line["planned"] if name not in found.planned]
    elif "figure" in line:
        found.figures[line["test"], line["figure"]] = line
    elif "goal" in line:
        found.goals[line["test"], line["goal"]] = line
    elif "skipped" in line:
        found.skipped[line["test"]] = line["skipped"]
    else:
        found.outcomes[line["test"]] = line["outcome"]
        if line["outcome"] == "failed":
            found.failures.append(line)
