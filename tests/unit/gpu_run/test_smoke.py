"""The whole script at toy sizes in a process of its own, and what it writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cells
import pytest

MOST_SECONDS = 800  # it takes a minute; a machine whose cores others use as well may take many
pytestmark = pytest.mark.timeout(MOST_SECONDS + 60)

SCRIPT = Path(__file__).resolve().parents[2] / "gpu" / "run"


def call(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, SCRIPT, *args],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
        env=environ,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
    out = tmp_path_factory.mktemp("smoke")
    done = call("--smoke", "--out", str(out))
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    wrong = [r for r in found["records"] if r["status"] != "ok"]
    assert not wrong, json.dumps(wrong, indent=1)
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path.name for path in out.iterdir()]
    return {**found, "files": files, "table": (out / "table.md").read_text()}


def test_every_cell_ran_and_every_check_holds(smoke: dict[str, Any]) -> None:
    assert [r["name"] for r in smoke["records"]] == [cell.name for cell in cells.all_cells(toy=True)]
    checks = [check for r in smoke["records"] for check in r["checks"]]
    assert len(checks) > 100 and all(check["ok"] and check["reason"] for check in checks)


def test_every_figure_has_its_floor(smoke: dict[str, Any]) -> None:
    timed = [f for r in smoke["records"] for f in r["figures"] if "seconds" in f]
    assert timed and all(f["seconds"] > 0 for f in timed)
    assert all(f["ratio"] == pytest.approx(f["seconds"] / f["floor"]) for f in timed if "floor" in f)
    assert {"matrix", "copy"} <= set(smoke["rates"])


def test_each_rival_was_measured_in_the_same_run(smoke: dict[str, Any]) -> None:
    named = {f["what"] for r in smoke["records"] for f in r["figures"]}
    assert {"per-beam decode", "cascade as shipped", "flat topk", "padded trie"} <= named


def test_whole_requests_were_answered(smoke: dict[str, Any]) -> None:
    figures = {f["what"]: f for r in smoke["records"] for f in r["figures"]}
    assert figures["W=5, 2 callers"]["requests"] > 0 and figures["W=5, 2 callers"]["requests_per_s"] > 0
    assert figures["2 at a time"]["requests_per_s"] > 0


def test_a_cohort_left_its_profile(smoke: dict[str, Any]) -> None:
    assert "decode-toy.json.gz" in smoke["files"]


def test_the_table_has_a_line_for_every_figure(smoke: dict[str, Any]) -> None:
    lines = [line for line in smoke["table"].splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + sum(len(r["figures"]) for r in smoke["records"])


def test_the_list_needs_no_torch() -> None:
    done = call("--list", "--part", "1/40", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "check-tail-attention" in done.stdout
    assert "torch" not in done.stderr


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--out", "/nonexistent", "--part", "3/2"], "write i/n"),
        (["--out", "/nonexistent", "--only", "no-such-cell"], "no such cell"),
        (["--out", "/nonexistent", "--merge", "/nonexistent"], "holds no results"),
        (["--part", "1/40"], "name a folder"),
    ],
    ids=["part", "only", "merge", "out"],
)
def test_a_command_that_makes_no_sense_says_why(args: list[str], why: str) -> None:
    done = call(*args)
    assert done.returncode == 2 and why in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("needs a machine without an NVIDIA GPU")
    done = call("--out", str(tmp_path), "--only", "check-tail")
    assert done.returncode == 1 and "there is no GPU here" in done.stderr
