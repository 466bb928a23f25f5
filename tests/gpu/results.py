"""What a run found, as JSON that is written after every cell, and how the runs of parts are joined."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "results.json"


@dataclass
class Record:
    """What one cell found. `figures` are times in seconds, `checks` are errors beside their limits."""

    name: str
    sizes: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # of the whole cell

    @property
    def status(self) -> str:
        """ok, failed (a check is beyond its limit) or error (something of ours raised)."""
        if any(error["ours"] for error in self.errors):
            return "error"
        return "ok" if all(check["ok"] for check in self.checks) else "failed"

    def time(self, what: str, seconds: float, floor: float | None = None, **more: Any) -> None:
        """A measured time, and how it stands to its floor."""
        figure = {"what": what, "seconds": seconds, **more}
        if floor is not None:
            figure |= {"floor": floor, "ratio": seconds / floor}
        self.figures.append(figure)

    def check(self, case: str, error: float, limit: float, reason: str) -> None:
        """An error that is to be at most `limit`; NaN never is."""
        self.checks.append(
            {"case": case, "error": error, "limit": limit, "reason": reason, "ok": bool(error <= limit)}
        )

    def expect(self, case: str, holds: bool, reason: str) -> None:
        """Something that is to be true."""
        self.check(case, 0.0 if holds else 1.0, 0.0, reason)

    def goal(self, what: str, value: float, bound: float, least: bool = False) -> None:
        """A figure that is to be at most `bound`, or at least; to miss it is shown, and is no failure."""
        met = value >= bound if least else value <= bound
        self.goals.append({"what": what, "value": value, "bound": bound, "least": least, "met": bool(met)})

    @contextmanager
    def guard(self, what: str, ours: bool = True) -> Iterator[None]:
        """What raises inside is recorded with its traceback, and the cell goes on. A rival may fail."""
        try:
            yield
        except Exception:
            self.errors.append({"what": what, "ours": ours, "traceback": traceback.format_exc(limit=-12)})

    def as_dict(self) -> dict[str, Any]:
        """What goes into the file."""
        return {**asdict(self), "status": self.status}


@dataclass
class Results:
    """One run: its header, the cells it set out to do, and the records of those it did."""

    header: dict[str, Any]
    part: str  # "i/n"
    planned: list[str]
    records: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    running: str = ""  # the cell that is being done
    finished: bool = False  # whether the end of the plan, or of the time, was reached

    @property
    def missing(self) -> list[str]:
        """Planned cells that have no record."""
        done = {record["name"] for record in self.records}
        return [name for name in self.planned if name not in done]

    @property
    def sound(self) -> bool:
        """Whether nothing that ran failed."""
        return all(record["status"] == "ok" for record in self.records)

    def write(self, folder: Path) -> None:
        """Replaces the file as a whole, so that a run that is killed leaves a whole one."""
        path = folder / FILE
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1, default=str), encoding="utf-8")
        new.replace(path)


def read(folder: Path) -> Results:
    """The results in a folder. Raises ValueError."""
    try:
        return Results(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no results: {error}") from None


def merge(runs: Sequence[Results]) -> Results:
    """Parts of one plan as one run. Raises ValueError for parts that do not belong together or come twice."""
    if unfit := [run.part for run in runs if not run.part.replace("/", "").isdigit()]:
        raise ValueError(f"not parts of a plan: {', '.join(unfit)}")
    counts = {run.part.split("/")[1] for run in runs}
    if len(counts) != 1:
        raise ValueError(f"parts of different plans: {', '.join(sorted(run.part for run in runs))}")
    for what in ([run.part for run in runs], [name for run in runs for name in run.planned]):
        if twice := sorted({entry for entry in what if what.count(entry) > 1}):
            raise ValueError(f"given twice: {', '.join(twice)}")
    count = int(counts.pop())
    given = {int(run.part.split("/")[0]): run for run in runs}
    ordered = [given[index] for index in sorted(given)]
    absent = [f"{index}/{count}" for index in range(1, count + 1) if index not in given]
    header = dict(ordered[0].header) | {"parts": [run.part for run in ordered], "missing_parts": absent}
    header["differing"] = _differing([run.header for run in ordered])
    return Results(
        header,
        f"1/{count}" if count == 1 else f"all/{count}",
        [name for run in ordered for name in run.planned],
        [record for run in ordered for record in run.records],
        _spread([run.rates for run in ordered]),
        finished=all(run.finished for run in ordered),
    )


def _differing(headers: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Entries that are not the same in all parts: another machine, driver or commit should be seen."""
    names = {name for header in headers for name in header} - {"date", "seed"}
    found = {name: [header.get(name) for header in headers] for name in sorted(names)}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _spread(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each rate the mean, the least and the most of the parts."""
    joined: dict[str, float] = {}
    for name in sorted({name for of in rates for name in of}):
        values = [of[name] for of in rates if name in of]
        joined[name] = sum(values) / len(values)
        joined |= {f"{name}_least": min(values), f"{name}_most": max(values)}
    return joined
