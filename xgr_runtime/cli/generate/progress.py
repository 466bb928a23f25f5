"""How far a run is: a bar where somebody looks at it, else a line now and then."""

from __future__ import annotations

import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SAY_EVERY = 30.0  # seconds, where no terminal shows a bar


class LineProgress(contextlib.AbstractContextManager["LineProgress"]):
    """Lines done of so many, with an estimate of what is left."""

    def __init__(self, total: int, done: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._total, self._done, self._failed = total, done, 0
        self._said = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=total, completed=done)
        if done:
            self._console.print(f"{done} of {total} lines have an answer already")

    def __enter__(self) -> LineProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def one(self, failed: bool) -> None:
        """Another line is done."""
        self._done += 1
        self._failed += failed
        said = f"{self._failed} with an error" if self._failed else ""
        self._bar.update(self._task, advance=1, description=said)
        self._say(said)

    def waits(self, problem: str) -> None:
        """A line has to be asked again."""
        self._bar.update(self._task, description=f"waiting: {problem[:60]}")
        self._say(f"waiting: {problem}")

    def _say(self, what: str) -> None:
        if self._console.is_terminal or time.monotonic() - self._said < SAY_EVERY:
            return
        self._said = time.monotonic()
        self._console.print(f"{self._done} of {self._total} lines" + (f", {what}" if what else ""))
