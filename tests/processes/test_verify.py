"""`xgr verify` from the settings of a deployment to a verdict, and to a server, with real processes."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from serve import Serve
from until import until

from xgr_runtime.cli import main
from xgr_runtime.client import XgrClient
from xgr_runtime.launcher.deployment import Deployment


@pytest.fixture(scope="module")
def folder(checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `xgr import` would write of settings: a serve.toml."""
    made = tmp_path_factory.mktemp("served")
    (made / "serve.toml").write_text(
        f"model-path = {json.dumps(str(checkpoint))}\ncatalog = {json.dumps(str(catalog_source))}\n"
        f"port = {free_port()}\nkv-bytes = {64 << 20}\n"
    )
    return made


@pytest.fixture(scope="module")
def cases(folder: Path, deployment: Deployment) -> Path:
    """Four histories through Hugging Face's generate, which the deployment has been verified by."""
    path = folder / "cases.jsonl"
    asked = ["--reference", "4", "--width", "8", "--save-cases", str(path), "--url", deployment.url]
    assert main(["verify", str(folder), *asked, "--report", str(folder / "report.json")]) == 0
    return path


def report_of(folder: Path, cases: Path, url: str, *flags: str) -> tuple[int, dict[str, Any]]:
    path = folder / "report.json"
    path.unlink(missing_ok=True)
    code = main(["verify", str(folder), "--cases", str(cases), "--url", url, "--report", str(path), *flags])
    made: dict[str, Any] = json.loads(path.read_text())
    return code, made


def changed(cases: Path, folder: Path, **fields: Any) -> Path:
    """The cases with other fields in their second line."""
    lines = [json.loads(line) for line in cases.read_text().splitlines()]
    lines[1] |= fields
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_histories_through_hugging_face_are_cases(folder: Path, cases: Path, deployment: Deployment) -> None:
    lines = [json.loads(line) for line in cases.read_text().splitlines()]
    assert len(lines) == 4 and all(len(line["beams"]) == line["width"] == 8 for line in lines)
    code, report = report_of(folder, cases, deployment.url)
    assert code == 0 and report["verified"]
    totals = report["totals"]
    assert totals["prompts_same"] == totals["lists_same"] == totals["cases"] == 4
    assert totals["overlaps"] == {"1": 1.0, "10": 1.0, "width": 1.0}


def test_a_list_that_was_tampered_with_is_found(
    folder: Path, cases: Path, deployment: Deployment, tmp_path: Path
) -> None:
    beams = json.loads(cases.read_text().splitlines()[1])["beams"]
    wrong = [beams[2], beams[1], beams[0], *beams[3:]]
    code, report = report_of(folder, changed(cases, tmp_path, beams=wrong), deployment.url)
    problem = f"line 2: rank 0: {beams[0][0]}, theirs has {beams[2][0]}, and that is no tie"
    assert code == 1 and report["problems"] == [problem]


def test_another_prompt_is_found_and_its_list_is_asked_for(
    folder: Path, cases: Path, deployment: Deployment, tmp_path: Path
) -> None:
    other = json.loads(cases.read_text().splitlines()[0])["history"]
    code, report = report_of(folder, changed(cases, tmp_path, history=other), deployment.url)
    assert code == 1 and report["totals"]["prompts_same"] == 3 and report["totals"]["lists_same"] == 4
    assert report["problems"][0].startswith("line 2: prompt: token ")


def test_an_item_that_the_catalog_lacks_is_a_case_without_an_answer(
    folder: Path, cases: Path, deployment: Deployment, tmp_path: Path
) -> None:
    history = [*json.loads(cases.read_text().splitlines()[1])["history"], "nobody's"]
    asked = changed(cases, tmp_path, history=history)
    code, report = report_of(folder, asked, deployment.url)
    assert code == 1 and report["totals"]["unanswered"] == 1 and "nobody's" in report["problems"][0]
    assert report_of(folder, asked, deployment.url, "--unknown-history", "drop")[0] == 0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--cases", "{folder}/none.jsonl"], "--cases {folder}/none.jsonl cannot be read"),
        ([], "nothing to compare with: name --cases FILE, or --reference N"),
        (["--reference", "1", "--url", "{url}", "--serve"], "--serve and --url"),
        (["--reference", "1", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer"),
        (["--reference", "1", "--url", "{url}", "--width", "99999"], "raise max_beam_width"),
        (["--reference", "1", "--url", "{url}", "--variable", "x"], "--variable is 'x': write NAME=TEXT"),
        (["--reference", "1", "--url", "{url}", "--save-cases", "{folder}/no/x"], "--save-cases"),
        (["--reference", "1", "--url", "{url}", "--score", "mean"], "--score is 'mean'"),
        (["--reference", "1", "--url", "{url}", "--config", "x.toml"], "give one of them"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_use_is_named(
    folder: Path,
    deployment: Deployment,
    flags: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["verify", str(folder), *(flag.format(folder=folder, url=deployment.url) for flag in flags)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith("xgr verify: error: ") and problem.format(folder=folder) in line


def test_a_folder_without_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--reference", "1"]) == 2
    assert "holds no serve.toml: name the folder that `xgr import` wrote" in capsys.readouterr().err


@pytest.fixture
def served(folder: Path, cases: Path) -> Iterator[Serve]:
    python = ("-m", "xgr_runtime.cli", "verify")
    running = Serve([str(folder), "--cases", str(cases), "--serve"], os.environ, python)
    yield running
    running.close()


def test_a_pass_goes_on_to_serve_where_the_settings_say(folder: Path, served: Serve) -> None:
    settings = tomllib.loads((folder / "serve.toml").read_text())
    url = f"http://127.0.0.1:{settings['port']}"
    assert served.url() == url, "verified by a deployment of its own, which was on another port"
    lines = "".join(served.lines)
    assert lines.index("verified") < lines.index("ready at")
    with XgrClient(url) as client:
        until(client.ready, "ready")
        history = json.loads((folder / "cases.jsonl").read_text().splitlines()[0])["history"]
        assert len(client.generate(history=history, beam_width=8).meta_info.beam_results) == 8
    served.process.send_signal(signal.SIGTERM)
    assert served.end() == 0


def test_a_prompt_in_full(folder: Path, cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(cases.read_text().splitlines()[0])
    history = line["history"]
    assert main(["prompt", str(folder), "--json", "--history", *history]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [token["id"] for token in shown["tokens"]] == line["prompt_ids"]
    assert shown["text"] == "".join(token["text"] for token in shown["tokens"])
    assert len(shown["sids"]) == len(history) and shown["dropped"] == 0
    for row, item in zip(shown["sids"], history, strict=True):
        assert item in row["items"]
    assert main(["prompt", str(folder), "--history", *history]) == 0
    text = capsys.readouterr().out
    assert f"{len(line['prompt_ids'])} tokens" in text and f"{len(history)} SIDs" in text
