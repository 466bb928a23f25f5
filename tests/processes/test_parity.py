"""Public projects' own lists: imported, served and verified, as a newcomer would, in a deployment for each.

Ten cases of each file; all of them with `--long`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kits import KITS, laid_out
from shared_templates import deployment_of

from xgr_runtime.cli import main
from xgr_runtime.config import ServeConfig

PARQUET = "data/benchmark_data/video/video_test.parquet"


@dataclass(frozen=True)
class Files:
    """Cases of a kit, and the flags that they need. exact: theirs is the list of an exact search."""

    kit: str
    cases: str
    exact: bool
    flags: tuple[str, ...] = ()


EVERY = [
    Files("minionerec", "cases.jsonl", True),
    Files("minionerec", "cases_bf16.jsonl", True, ("--cases-dtype", "bfloat16", "--min-overlap", "0.95")),
    Files("openonerec", "cases.jsonl", False, ("--messages", PARQUET)),
    Files("openonerec", "cases.jsonl", True, ("--messages", PARQUET, "--beams", "constrained_w32")),
    Files("openonerec", "cases.jsonl", True, ("--messages", PARQUET, "--beams", "constrained_w128")),
    Files("onerec-think", "cases.jsonl", False),
    Files(
        "onerec-think", "cases_think.jsonl", False, ("--template", "think", "--variable", "thought={thought}")
    ),
    Files("lcrec", "cases.jsonl", False),
]


@dataclass(frozen=True)
class Imported:
    """A deployment of what `xgr import` made of a kit."""

    kit: Path
    folder: Path
    url: str


def deployed(kit: str, root: Path) -> Iterator[Imported]:
    out = root / f"{kit}-deployment"
    source, model = str(KITS / kit / "data"), str(laid_out(kit, root) / "model")
    assert main(["import", source, "--model-path", model, "--out", str(out)]) == 0
    config = ServeConfig(
        model_path=model,
        catalog=str(out / "items.jsonl"),
        dtype="float32",
        port=0,
        kv_bytes=64 << 20,
        log_level="WARNING",
    )
    with deployment_of(config) as running:
        yield Imported(KITS / kit, out, running.url)


@pytest.fixture(scope="module", params=["minionerec", "openonerec", "onerec-think", "lcrec"])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    """One kit after the other."""
    yield from deployed(request.param, tmp_path_factory.mktemp("kits"))


def verified(imported: Imported, files: Files, report: Path, limit: int | None) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    flags = [str(imported.kit / flag) if flag == PARQUET else flag for flag in files.flags]
    few = [] if limit is None else ["--limit", str(limit)]
    cases = ["--cases", str(imported.kit / files.cases), "--url", imported.url, "--report", str(report)]
    code = main(["verify", str(imported.folder), *cases, *flags, *few])
    made: dict[str, Any] = json.loads(report.read_text())
    return code, made


@pytest.mark.timeout(600)
def test_every_list_of_theirs_is_ours(
    imported: Imported, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    limit = None if request.config.getoption("--long") else 10
    tried = [files for files in EVERY if files.kit == imported.kit.name]
    assert tried
    for number, files in enumerate(tried):
        code, report = verified(imported, files, tmp_path / f"{number}.json", limit)
        totals = report["totals"]
        assert code == 0 and report["verified"], (files, report["problems"])
        assert totals["prompts_same"] == totals["prompts_compared"] == totals["cases"] >= 10
        assert totals["unanswered"] == totals["illegal_ours"] == totals["double_ours"] == 0
        assert not files.exact or totals["inexact"] == 0
        assert report["bounds"]["overlap"] is not None or totals["missing"] == 0
        if not files.exact:
            assert totals["illegal_theirs"] > 0, "whoever reads this should know that theirs is not exact"


def test_a_wrong_catalog_is_found_out(imported: Imported, tmp_path: Path) -> None:
    """Beams of other users are not those of this one: a proof that the comparison is one."""
    lines = [json.loads(line) for line in (imported.kit / "cases.jsonl").read_text().splitlines()[:2]]
    swapped = tmp_path / "cases.jsonl"
    pairs = zip(lines, lines[::-1], strict=True)
    shown = [{"prompt_ids": a["prompt_ids"], "width": a["width"], "beams": b["beams"]} for a, b in pairs]
    swapped.write_text("".join(json.dumps(line) + "\n" for line in shown))
    files = Files(imported.kit.name, str(swapped), False)
    code, report = verified(imported, files, tmp_path / "report.json", None)
    assert code == 1 and len(report["problems"]) == 2
