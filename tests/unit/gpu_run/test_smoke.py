"""The whole suite at toy sizes, as it is called, and what it writes."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import results
from models import LAYERS
from results import Results

MOST_SECONDS = 800  # it takes a minute; a machine whose cores others use as well may take many
pytestmark = pytest.mark.timeout(MOST_SECONDS + 60)

SCRIPT = Path(results.__file__).with_name("run")


def call(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *args],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
    out = tmp_path_factory.mktemp("smoke")
    done = call("--smoke", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def smoke(folder: Path) -> Results:
    return results.read(folder)


def test_every_test_passed(smoke: Results) -> None:
    assert len(smoke.planned) > 40 and list(smoke.outcomes) == smoke.planned and not smoke.failures


def test_every_figure_has_its_floor(smoke: Results) -> None:
    timed = [figure for figure in smoke.figures.values() if "seconds" in figure]
    assert timed and all(f["seconds"] > 0 for f in timed)
    assert all(f["ratio"] == pytest.approx(f["seconds"] / f["floor"]) for f in timed if "floor" in f)
    assert {"matrix", "copy"} == set(smoke.headers[0]["rates"])


def test_each_rival_was_measured_in_the_same_run(smoke: Results) -> None:
    timed = {what for (_, what), figure in smoke.figures.items() if "seconds" in figure}
    assert {"per-beam decode", "cascade as shipped", "flat topk", "padded trie"} <= timed


def test_whole_requests_were_answered(smoke: Results) -> None:
    figures = {what: figure for (_, what), figure in smoke.figures.items()}
    assert figures["W=5, 2 callers"]["requests"] > 0 and figures["W=5, 2 callers"]["requests_per_s"] > 0
    assert figures["2 at a time"]["requests_per_s"] > 0


def test_a_cohort_left_its_profile_and_the_run_a_table(folder: Path, smoke: Results) -> None:
    kept = {"decode-toy-W2-L20-B2-transformers.json", "prefill-toy-2x20-transformers.json"}
    assert set(zipfile.ZipFile(folder / "profiles.zip").namelist()) == kept
    assert len(list(folder.iterdir())) <= 8, "of some machines no more come back"
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(smoke.figures)


def test_the_full_suite_has_every_test_and_every_goal(smoke: Results) -> None:
    names = {line for line in call("--collect-only", "-q").stdout.splitlines() if "::" in line}
    functions = {name.partition("::")[2].partition("[")[0] for name in names}
    assert functions == {name.partition("::")[2].partition("[")[0] for name in smoke.planned}
    for goal in (
        "shared_attention[16/8-W256-L2048-B4]",
        *(f"decode[1.7B-W256-L2048-B4-{layers}]" for layers in LAYERS),
        *(f"prefill[1.7B-packed-8x1k-{layers}]" for layers in LAYERS),
        *(f"prefill[1.7B-one-1k-{layers}]" for layers in LAYERS),
        "in_turns[1.7B-W256-L1000-B8]",
        "in_turns[1.7B-W256-L5000-B8]",
        "load[1.7B-W256-L5000-colocated]",
        "load[1.7B-W50+128+512-L2465-colocated]",
    ):
        assert any(name.endswith(f"::test_{goal}") for name in names), goal


@pytest.mark.parametrize(
    ("args", "why"),
    [(["--smoke"], "name a folder"), (["--out", "{here}"], "there is no GPU here; --smoke")],
    ids=["out", "no-gpu"],
)
def test_a_command_that_makes_no_sense_says_why(args: list[str], why: str, tmp_path: Path) -> None:
    done = call(*(arg.format(here=tmp_path) for arg in args))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and why in done.stderr
    assert "Traceback" not in done.stderr
