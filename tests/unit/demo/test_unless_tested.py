"""What need not run again: only a command that passed with the very same files is left out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from scripts import DEPLOY


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with one part: the folder `watched`, which no commit is a spot check of."""
    monkeypatch.syspath_prepend(str(DEPLOY))
    import unless_tested

    monkeypatch.setattr(unless_tested, "PARTS", {"part": unless_tested.Part(("watched",), ("pytest",))})
    monkeypatch.setattr(unless_tested, "is_spot_check", lambda commit, name: False)
    return unless_tested


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for file in ("watched/one.py", "watched/deep/two.py", "beside.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(file)
    (tmp_path / "deploy").mkdir()
    return tmp_path


class Runs:
    """How often the command has run; it ends with `code`."""

    def __init__(self, tested: ModuleType, clone: Path) -> None:
        self.tested, self.clone, self.code = tested, clone, 0

    def __call__(self, always: bool = False) -> tuple[int, bool]:
        """The exit code, and whether the command ran."""
        mark = self.clone / "ran"
        mark.unlink(missing_ok=True)
        code = f"import pathlib, sys; pathlib.Path('ran').touch(); sys.exit({self.code})"
        done = self.tested.run(self.clone, "part", [sys.executable, "-c", code], always)
        return done, mark.exists()


@pytest.fixture
def runs(tested: ModuleType, clone: Path) -> Runs:
    return Runs(tested, clone)


def test_what_passed_is_left_out_and_says_so(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    assert runs() == (0, True)
    assert "has changed since it last passed" in capfd.readouterr().out
    (runs.clone / "beside.py").write_text("not watched")
    (runs.clone / "watched" / "__pycache__").mkdir()
    (runs.clone / "watched" / "__pycache__" / "one.pyc").write_text("what Python leaves")
    assert runs() == (0, False)
    assert "left out" in capfd.readouterr().out
    assert runs(always=True) == (0, True)


@pytest.mark.parametrize("change", ["edited", "new", "removed", "renamed"])
def test_what_has_changed_runs_again(runs: Runs, change: str) -> None:
    runs()
    file = runs.clone / "watched" / "deep" / "two.py"
    match change:
        case "edited":
            file.write_text("other")
        case "new":
            file.with_name("three.py").touch()
        case "removed":
            file.unlink()
        case "renamed":
            file.rename(file.with_name("three.py"))
    assert runs() == (0, True)
    assert runs() == (0, False)


def test_another_version_of_a_package_runs_again(
    runs: Runs, tested: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs()
    monkeypatch.setattr(tested.importlib.metadata, "version", lambda package: "0.0")
    assert runs() == (0, True)


def test_what_fails_runs_again_until_it_passes(runs: Runs) -> None:
    runs.code = 3
    assert runs() == (3, True)
    assert runs() == (3, True), "nothing was kept"
    runs.code = 0
    assert runs() == (0, True)
    runs.code = 3
    assert runs() == (0, False)


@pytest.mark.parametrize("line", ["part 0123", "part", "", "other 0123", "part 0123 4567"])
def test_a_line_that_nobody_earned_makes_nothing_pass(runs: Runs, line: str) -> None:
    (runs.clone / "deploy" / "tested.txt").write_text(f"{line}\n")
    runs.code = 3
    assert runs() == (3, True)


def test_one_part_keeps_the_lines_of_the_others(runs: Runs) -> None:
    file = runs.clone / "deploy" / "tested.txt"
    file.write_text("zebra 1\nant 2\n")
    runs()
    lines = file.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["ant", "part", "zebra"]


def test_a_path_that_is_gone_is_an_error(
    runs: Runs, tested: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a part would be left out for ever."""
    monkeypatch.setattr(tested, "PARTS", {"part": tested.Part(("watched", "moved"), ())})
    with pytest.raises(SystemExit, match="moved is gone"):
        runs()


def test_all_that_the_parts_name_is_there() -> None:
    code = "import unless_tested as u; [u.fingerprint(u.ROOT, part) for part in u.PARTS.values()]"
    subprocess.run([sys.executable, "-c", code], cwd=DEPLOY, check=True)


def watched_by(name: str) -> set[Path]:
    code = f"import unless_tested as u; print(*u.files_of(u.ROOT, u.PARTS[{name!r}]), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=DEPLOY, check=True, capture_output=True, text=True
    )
    return {Path(line).resolve() for line in done.stdout.splitlines()}


@pytest.mark.parametrize("name", ["interpreted-kernels", "interpreted-engines", "oldest-transformers"])
def test_a_part_watches_the_tests_that_it_is_made_of(name: str) -> None:
    """And what those import of tests/support: an edit there must run them again."""
    tests, watched = DEPLOY.parent / "tests", watched_by(name)
    ours = {file for file in watched if file.is_relative_to(tests) and file.suffix == ".py"}
    support = {file.stem: file for file in (tests / "support").glob("*.py")}
    imported = {
        word for file in ours for word in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.M)
    }
    assert ours and not {support[word] for word in imported & support.keys()} - watched
    own = {file for file in ours if file.name.startswith("test_")}
    asked = (DEPLOY / "test").read_text()
    if name == "oldest-transformers":
        own = {file for file in own if file.parent.name != "model"}
        asked = (DEPLOY / "test-oldest").read_text()
        assert "tests/unit/model " in asked
    assert all(part in asked for file in own for part in (file.parent.name, file.stem.removeprefix("test_")))


def test_some_commits_run_a_part_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part at about one commit in twelve, at most one at a commit, and none at about every second."""
    monkeypatch.syspath_prepend(str(DEPLOY))
    import unless_tested as u

    parts, commits = list(u.PARTS), [f"{number:040x}" for number in range(800)]
    run = [[part for part in parts if u.is_spot_check(commit, part)] for commit in commits]
    assert max(map(len, run)) == 1 and len(parts) <= u.SPOT_CHECK
    counts = Counter(part for some in run for part in some)
    assert all(40 < counts[part] < 95 for part in parts)
    assert 300 < sum(not some for some in run) < 500
    assert all(u.is_spot_check("", part) for part in parts), "without git nobody knows"
