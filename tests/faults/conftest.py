"""One deployment of real processes that the tests of this folder break, and the table of what came of it."""

from collections.abc import Iterator

import pytest
from crowd import Question
from fault_table import FILE, FaultTable
from fleet import Fleet
from patient import Patient
from trial import MakeTrial, Trial

TABLE = FaultTable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(row.finished for row in TABLE.rows):
        terminalreporter.section(f"faults (also in {FILE})")
        for line in TABLE.lines():
            terminalreporter.write_line(line)
        TABLE.write()


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether cases may take minutes."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def table() -> FaultTable:
    """What the end of the run prints."""
    return TABLE


@pytest.fixture(scope="session")
def patient() -> Iterator[Patient]:
    made = Patient()
    yield made
    made.close()


@pytest.fixture
def fleet(patient: Patient, table: FaultTable) -> Fleet:
    """Two prefill and two decode workers and a router, all of them well."""
    fleet = patient.fleet()
    table.cold_start = fleet.cold_start
    return fleet


@pytest.fixture
def questions(fleet: Fleet, patient: Patient) -> list[Question]:
    """Requests and their undisturbed answers."""
    return patient.questions


@pytest.fixture
def trial(fleet: Fleet, questions: list[Question], patient: Patient, table: FaultTable) -> MakeTrial:
    """Begins a case of the table: `with trial(name) as it`."""

    def begin(case: str, refusals: tuple[str, ...] = ()) -> Trial:
        return Trial(case, fleet, questions, patient.at_rest, table, refusals)

    return begin
