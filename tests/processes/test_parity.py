"""Public projects' own lists: imported, served and verified, as a newcomer would, in a deployment for each.

One project at each commit, and a few cases of each file; all of them with `--long`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kits import KITS, laid_out
from references import share_of_commit
from shared_templates import deployment_of

from xgr_runtime.cli import main
from xgr_runtime.config import ServeConfig

FEW = 5
PARQUET = "data/benchmark_data/video/video_test.parquet"


@dataclass(frozen=True)
class Files:
    """Cases of a kit, and the flags that they need. exact: theirs is the list of an exact search."""

    cases: str
    exact: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """A kit with one of its checkpoints, and the cases of that."""

    kit: str
    every: tuple[Files, ...]
    model: str = "model"


EVERY = {
    "minionerec": Project(
        "minionerec",
        (
            Files("cases.jsonl", True),
            Files("cases_bf16.jsonl", True, ("--cases-dtype", "bfloat16", "--min-overlap", "0.95")),
        ),
    ),
    "openonerec": Project(
        "openonerec",
        (
            Files("cases.jsonl", False, ("--messages", PARQUET)),
            Files("cases.jsonl", True, ("--messages", PARQUET, "--beams", "constrained_w32")),
            Files("cases.jsonl", True, ("--messages", PARQUET, "--beams", "constrained_w128")),
        ),
    ),
    "onerec-think": Project(
        "onerec-think",
        (
            Files("cases.jsonl", False),
            Files("cases_think.jsonl", False, ("--template", "think", "--variable", "thought={thought}")),
        ),
    ),
    "lcrec": Project("lcrec", (Files("cases.jsonl", False), Files("cases_17prompts.jsonl", False))),
    "lcrec-lora": Project("lcrec", (Files("cases_lora.jsonl", False),), "adapter"),
}


@dataclass(frozen=True)
class Imported:
    """A deployment of what `xgr import` made of a kit."""

    project: Project
    kit: Path
    folder: Path
    url: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kits")


@pytest.fixture(scope="module", params=EVERY)
def imported(request: pytest.FixtureRequest, root: Path) -> Iterator[Imported]:
    """One project after the other."""
    turn = list(EVERY)[share_of_commit() % len(EVERY)]
    if request.param != turn and not request.config.getoption("--long"):
        pytest.skip(f"{turn} has its turn at this commit; --long asks all projects")
    project = EVERY[request.param]
    kit, out = KITS / project.kit, root / f"{request.param}-deployment"
    model = str(laid_out(project.kit, root) / project.model)
    assert main(["import", str(kit / "data"), "--model-path", model, "--out", str(out)]) == 0
    config = ServeConfig(
        model_path=model,
        catalog=str(out / "items.jsonl"),
        dtype="float32",
        port=0,
        kv_bytes=64 << 20,
        log_level="WARNING",
    )
    with deployment_of(config) as running:
        yield Imported(project, kit, out, running.url)


def with_templates(path: Path, folder: Path) -> Path:
    """The cases of 17 prompts, each with the name of its template."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    named = [{**line, "template": f"prompt-{line['prompt']}"} for line in lines]
    made = folder / path.name
    made.write_text("".join(json.dumps(line) + "\n" for line in named))
    return made


def verified(imported: Imported, files: Files, folder: Path, limit: int | None) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    flags = [str(imported.kit / flag) if flag == PARQUET else flag for flag in files.flags]
    few = [] if limit is None else ["--limit", str(limit)]
    cases, report = imported.kit / files.cases, folder / "report.json"
    if "17" in files.cases:
        cases, few = with_templates(cases, folder), []
    code = main(
        [
            *("verify", str(imported.folder), "--cases", str(cases), "--url", imported.url),
            *("--report", str(report), *flags, *few),
        ]
    )
    made: dict[str, Any] = json.loads(report.read_text())
    return code, made


def counted(cases: Path, totals: dict[str, Any]) -> int:
    """Beams that are no item, as the kit counts them."""
    lines = cases.read_text().splitlines()[: totals["cases"]]
    return sum(int(json.loads(line)["illegal"]) for line in lines)


@pytest.mark.timeout(600)
def test_every_list_of_theirs_is_ours(
    imported: Imported, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    limit = None if pytestconfig.getoption("--long") else FEW
    for files in imported.project.every:
        code, report = verified(imported, files, tmp_path, limit)
        totals = report["totals"]
        assert code == 0 and report["verified"], (files, report["problems"])
        assert totals["prompts_same"] == totals["prompts_compared"] == totals["cases"] >= FEW
        assert totals["unanswered"] == totals["illegal_ours"] == totals["double_ours"] == 0
        assert report["bounds"]["overlap"] is not None or totals["missing"] == 0
        assert totals["illegal_theirs"] == (0 if files.exact else counted(imported.kit / files.cases, totals))


def test_lists_of_other_users_are_found_out(imported: Imported, tmp_path: Path) -> None:
    """Beams of other users are not those of this one: a proof that the comparison is one."""
    source = imported.kit / imported.project.every[0].cases
    lines = [json.loads(line) for line in source.read_text().splitlines()[:2]]
    swapped = tmp_path / "cases.jsonl"
    pairs = zip(lines, lines[::-1], strict=True)
    shown = [{"prompt_ids": a["prompt_ids"], "width": a["width"], "beams": b["beams"]} for a, b in pairs]
    swapped.write_text("".join(json.dumps(line) + "\n" for line in shown))
    code, report = verified(imported, Files(str(swapped), False), tmp_path, None)
    assert code == 1 and len(report["problems"]) == 2
