"""One case of the fault suite: a fault under load, then the checks that hold after every fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from census import Census, leaks
from crowd import Crowd, Outcome, Question, Tally
from fault_table import FaultTable, Row
from fleet import TIMES, Fleet

SURVIVORS_ANSWER = TIMES["silence"]  # seconds after a kill: nobody waits until the dead are missed

MakeTrial = Callable[..., "Trial"]
"""Begins a case: its name, and the codes of errors that it may cause."""


class Trial(AbstractContextManager["Trial"]):
    """`with Trial(...) as trial:` breaks something; at its end everything must be as it was before.

    All workers are usable, nothing is held, every question gets its undisturbed answer, no request hung, was
    lost or answered wrongly. `refusals`: codes of errors that this fault may cause; without, none.
    """

    def __init__(
        self,
        case: str,
        fleet: Fleet,
        questions: Sequence[Question],
        before: Census,
        table: FaultTable,
        refusals: Sequence[str] = (),
    ) -> None:
        self.fleet = fleet
        self.questions = questions
        self.row = Row(case, Tally())
        self.struck_at: float | None = None
        self._before = before
        self._refusals = set(refusals)
        self._replaced: dict[str, str] = {}
        self._said = len(fleet.lines)
        table.rows.append(self.row)

    def crowd(self, seed: int, questions: Sequence[Question] | None = None, **how: Any) -> Crowd:
        """Callers whose requests count for this case."""
        crowd = Crowd(self.fleet.url, questions or self.questions, seed, **how)
        crowd.tally = self.row.tally
        return crowd

    def fault(self, replaced: Mapping[str, str] | None = None) -> None:
        """It has happened now; the processes `replaced` (name, incarnation) will be others."""
        self.struck_at = self.struck_at or time.monotonic()
        self._replaced |= dict(replaced or {})

    def wait_answered(self, seconds: float = 30.0) -> float:
        """Seconds from the fault to the first correct answer to a request that came after it."""
        assert self.struck_at is not None, "no fault yet"
        end = time.monotonic() + seconds
        while (found := self.row.tally.answered_after(self.struck_at)) is None:
            assert time.monotonic() < end, f"no answer within {seconds:g} s of the fault"
            time.sleep(0.01)
        self.row.answered = found
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fleet.mend()
        self.fleet.wake()
        try:
            if error is None:
                self.recover()
        finally:  # pytest shows it where something is wrong
            print("".join(line for line in self.fleet.lines[self._said :] if " INFO " not in line))

    def recover(self) -> None:
        """Wait until all is well again, and check that it is."""
        self.fleet.whole(self._replaced)
        if self.struck_at is not None:
            self.row.whole = time.monotonic() - self.struck_at
        self.row.leaks = leaks(self.fleet, self._before)
        with Crowd(self.fleet.url, self.questions, seed=0, each=True) as crowd:
            after = crowd.wait()
        self.row.leaks = self.row.leaks or leaks(self.fleet, self._before)
        self.row.finished = True
        assert not self.row.tally.bad, self.row.tally.bad[:10]
        assert set(self.row.tally.refusals) <= self._refusals, self.row.tally.refusals
        assert after.counts == {Outcome.CORRECT: len(self.questions)}, [*after.bad, *after.refusals][:10]
        assert not self.row.leaks, self.row.leaks
