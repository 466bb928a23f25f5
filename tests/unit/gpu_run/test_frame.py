"""What becomes of a run whose tests fail, hang and end their process, or that is killed itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import results
from results import Results

pytestmark = pytest.mark.timeout(900)  # four runs that take seconds, on a machine that others use as well
INI = Path(results.__file__).with_name("pytest.ini")

SUITE = """
import os, signal, time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.mark.times
def test_measured(figures):
    figures.goal("ratio", 2.0, 1.0)

def test_right(figures):
    figures.time("ours", 2e-3, 1e-3)

@pytest.mark.cases("size", full=[pytest.param(7, id="W=7")], toy=[1])
def test_sizes(size):
    assert size == 7

def test_kills_the_run_once():
    if not (HERE / "killed").exists():
        (HERE / "killed").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

def test_wrong(subtests):
    for part in ("one", "other"):
        with subtests.test(part):
            assert False, f"{part} is off"

def test_dies(figures):
    figures.note("before it died")
    os._exit(11)

@pytest.mark.timeout(1)
def test_hangs():
    time.sleep(60)

def test_cannot():
    pytest.skip("needs another machine")
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(INI),
        f"--rootdir={folder}",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [*command, f"--out={folder}", *options, str(folder / "test_suite.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def outcomes(found: Results) -> dict[str, str]:
    return {name.partition("::test_")[2]: outcome for name, outcome in found.outcomes.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, Results]]:
    """With too little time for the first of it, killed, to the end, and once more."""
    folder, short = tmp_path_factory.mktemp("suite"), ["--first", "--seconds=2"]
    return [(run(folder, *options).returncode, results.read(folder)) for options in (short, [], [], [])]


Runs = list[tuple[int, Results]]


def test_nothing_begins_that_would_end_too_late(runs: Runs) -> None:
    code, found = runs[0]
    assert code == 0 and not found.outcomes and not found.skipped
    assert len(found.missing) == 7  # all checks; no other figure is planned


def test_a_run_that_is_killed_leaves_what_it_found(runs: Runs) -> None:
    code, found = runs[1]  # before any figure was measured: checks come first
    assert code == -9 and outcomes(found) == {"right": "passed", "sizes[W=7]": "passed"}
    assert [line["ratio"] for line in found.figures.values()] == [2.0]


def test_the_next_run_goes_on_behind_whatever_ends_a_process(runs: Runs) -> None:
    code, found = runs[2]
    assert code == 1 and not found.missing
    assert outcomes(found) == {
        "right": "passed",
        "sizes[W=7]": "passed",
        "kills_the_run_once": "passed",
        "wrong": "failed",
        "dies": "failed",
        "hangs": "failed",
        "measured": "passed",  # a goal that is missed is no failure
    }
    assert any(what == "before it died" for _, what in found.figures)
    assert list(found.skipped.values()) == ["needs another machine"]


def test_every_failure_is_named(runs: Runs) -> None:
    said = "\n".join(failure["why"] for failure in runs[2][1].failures)
    assert "one is off" in said and "other is off" in said and said.count("crashed") == 2


def test_nothing_is_done_twice(runs: Runs) -> None:
    code, found = runs[3]
    assert code == 0 and found == runs[2][1]  # but for what cannot run here: perhaps it can by now


def test_toy_sizes_are_not_taken_for_full_ones(tmp_path: Path) -> None:
    results.append(tmp_path, {"planned": ["test_suite.py::test_right"], "smoke": False})
    done = run(tmp_path, "--smoke")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{tmp_path} holds full sizes: name another --out" in done.stderr
