"""What this suite adds to pytest: sizes by scale, results kept as they come, a run that goes on.

A process of pytest-xdist has the device; the one that started it, the controller, keeps the outcomes.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import pytest
import results
import table
from results import Figures

AGREED = ("out", "done", "deadline", "seed")  # options
LATER = ("times", "rare")  # markers of what comes behind the other tests, in this order


def pytest_addoption(parser: pytest.Parser) -> None:
    """A shorter picture of everything would be an option here, which `_is_left_out` asks."""
    group = parser.getgroup("gpu", "checks and measurements on a GPU")
    group.addoption("--out", default="", help="folder of results; what has an outcome there is left out")
    group.addoption("--smoke", action="store_true", help="toy sizes, also without a GPU")
    group.addoption("--seconds", type=float, default=1e9, help="begin no test that late")
    group.addoption("--seed", type=int, default=secrets.randbits(31), help="of all random inputs")


def pytest_configure(config: pytest.Config) -> None:
    """In the controller settles what all processes, also those that replace others, must agree on."""
    if agreed := getattr(config, "workerinput", {}).get("gpu"):
        vars(config.option).update(agreed)
    elif not config.option.collectonly:
        _open(config)


def _open(config: pytest.Config) -> None:
    if not config.option.out:
        raise pytest.UsageError("name a folder for the results: --out DIR")
    folder = Path(config.option.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = results.read(folder)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if found.planned and found.smoke != config.option.smoke:
        raise pytest.UsageError(
            f"{folder} holds {'toy' if found.smoke else 'full'} sizes: name another --out"
        )
    config.option.out, config.option.done = str(folder), list(found.outcomes)
    config.option.deadline = time.time() + config.option.seconds
    config.option.verbose = max(config.option.verbose, 1)  # a line per test as it ends
    config.pluginmanager.register(Keeper(folder, len(found.outcomes)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """What the controller tells a process of pytest-xdist."""
    node.workerinput["gpu"] = {name: getattr(node.config.option, name) for name in AGREED}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The marker `cases`."""
    if mark := metafunc.definition.get_closest_marker("cases"):
        names, sizes = mark.args[0], "toy" if metafunc.config.option.smoke else "full"
        metafunc.parametrize(names, mark.kwargs[sizes])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Checks first; nothing that is done."""
    items.sort(key=_place)
    left_out = [item for item in items if _is_left_out(config, item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is about to be done."""
    if session.items and not session.config.option.collectonly:
        folder = Path(session.config.option.out)
        names, smoke = [item.nodeid for item in session.items], session.config.option.smoke
        results.append(folder, {"planned": names, "smoke": smoke})


def _place(item: pytest.Item) -> int:
    return max((LATER.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in LATER), default=0)


def _is_left_out(config: pytest.Config, item: pytest.Item) -> bool:
    return item.nodeid in getattr(config.option, "done", ())


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.option.deadline:
        pytest.skip("no time was left")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Keeps what the test measures."""
    return Figures(Path(request.config.option.out), request.node.nodeid)


class Keeper:
    """The controller's: outcomes into the file, a table at the end."""

    def __init__(self, folder: Path, done: int) -> None:
        self._folder, self._done = folder, done

    def pytest_report_header(self) -> str:
        """What is left out is said."""
        return f"results: {self._folder}; {self._done} tests have an outcome there and are left out"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Whatever fails, in whatever phase, and what passes; a test that is skipped has no outcome."""
        if report.failed or (report.passed and report.when == "call" and not hasattr(report, "context")):
            line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
            results.append(self._folder, line | ({"why": _why(report)} if report.failed else {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """table.md, shown as well."""
        text = table.markdown(results.read(self._folder))
        (self._folder / "table.md").write_text(text, encoding="utf-8")
        terminalreporter.write_line(text)


def _why(report: pytest.TestReport) -> str:
    """The end of what pytest shows, and which part of the test it was."""
    context = getattr(report, "context", None)
    part = f"{context.msg}: " if context and context.msg else ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return part + (crash.message if crash else str(report.longrepr))
