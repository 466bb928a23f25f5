"""What this suite adds to pytest: sizes by scale, results kept as they come, a run that goes on.

A process of pytest-xdist has the device; the one that started it, the controller, keeps the outcomes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import first
import pytest
import results
import table
from first import Place
from results import Figures

AGREED = ("out", "done", "deadline", "seed", "layers")  # options
LATER = ("times", "rare")  # markers of what comes behind the other tests, in this order
NO_TIME = "no time was left"
PLAN = pytest.StashKey[dict[str, Place]]()  # with --first, by the tests' ids


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line."""
    group = parser.getgroup("gpu", "checks and measurements on a GPU")
    group.addoption("--first", action="store_true", help="what a machine lent for half an hour must show")
    group.addoption("--out", default="", help="folder of results; what has an outcome there is left out")
    group.addoption("--smoke", action="store_true", help="toy sizes, also without a GPU")
    group.addoption("--seconds", type=float, help="begin no test that late; --first: that would end later")
    group.addoption("--layers", default="auto", help="model backend of what is measured in one alone")
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
    config.option.deadline = time.time() + _seconds(config)
    config.option.verbose = max(config.option.verbose, 1)  # a line per test as it ends
    config.pluginmanager.register(Keeper(folder, len(found.outcomes)))


def _seconds(config: pytest.Config) -> float:
    """Of this call."""
    if config.option.seconds is not None:
        return float(config.option.seconds)
    return first.CALL if config.option.first else 1e9


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
    """Checks first, or as --first has it; nothing that is done."""
    plan = config.stash[PLAN] = _plan(items) if config.option.first else {}
    items.sort(key=lambda item: plan[item.nodeid].order if item.nodeid in plan else _later(item))
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


def _later(item: pytest.Item) -> int:
    return max((LATER.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in LATER), default=0)


def _plan(items: list[pytest.Item]) -> dict[str, Place]:
    """What --first does, by the tests' ids."""
    from models import LAYERS  # torch, behind what must come before

    found = {}
    for item in items:
        if at := first.place(item.nodeid, {mark.name for mark in item.iter_markers()}, LAYERS):
            found[item.nodeid] = at
    return found


def _is_left_out(config: pytest.Config, item: pytest.Item) -> bool:
    if config.option.first and item.nodeid not in config.stash[PLAN]:
        return True
    return item.nodeid in getattr(config.option, "done", ())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where nothing is run, the plan of --first, to see whether it fits."""
    if config.option.collectonly and (plan := config.stash.get(PLAN, {})):
        for line in first.shown(dict(sorted(plan.items(), key=lambda pair: pair[1].order))):
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """With --first nothing takes far longer than it may; before pytest-timeout looks."""
    if seconds := _estimate(item):
        left = item.config.option.deadline - time.time()
        limit = first.GRACE + max(1.0, min(2 * seconds, left))
        item.add_marker(pytest.mark.timeout(limit), append=False)
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() + _estimate(item) > item.config.option.deadline:
        pytest.skip(NO_TIME)


def _estimate(item: pytest.Item) -> float:
    plan = item.config.stash.get(PLAN, {})
    return plan[item.nodeid].seconds if item.nodeid in plan else 0.0


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
        """Whatever fails, in whatever phase, and what passes; why a test cannot run here is no outcome."""
        whole = not hasattr(report, "context")  # not a part of a test
        if report.failed or (report.passed and report.when == "call" and whole):
            line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
            results.append(self._folder, line | ({"why": _why(report)} if report.failed else {}))
        elif report.skipped and whole and NO_TIME not in (why := str(report.longrepr[-1])):  # type: ignore[index]
            results.append(self._folder, {"test": report.nodeid, "skipped": why.removeprefix("Skipped: ")})

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
