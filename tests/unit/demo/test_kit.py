"""`xgr demo --kit`: which commands it gives, what it unpacks, and what is no kit."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgr_runtime import cli
from xgr_runtime.cli import main

UNPACK = """
import sys
from pathlib import Path
folder = Path(sys.argv[2]) / "model"
folder.mkdir()
(folder / "config.json").write_text(Path(sys.argv[1]).name)
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    made = tmp_path / "kits" / "toy"
    (made / "data" / "more").mkdir(parents=True)
    (made / "cases.jsonl").write_text('{"history": []}\n\n{"history": []}\n')
    return made


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that the demo gives to others, which do nothing; the one that is named fails."""
    made: list[list[str]] = []

    def stand_in(argv: list[str]) -> int:
        made.append(argv)
        return 1 if (tmp_path / f"{argv[0]} fails").exists() else 0

    monkeypatch.setattr(cli, "main", stand_in)
    return made


def demo(kit: Path, folder: Path, *flags: str) -> int:
    return main(["demo", "--kit", str(kit), "--port", "0", "--cache", str(folder / "cache"), *flags])


def packed(kit: Path, unpack: str = UNPACK) -> Path:
    (kit / "manifest.json").write_text("{}")
    (kit.parent / "unpack.py").write_text(unpack)
    return kit


def test_what_is_laid_out_is_imported_verified_and_served(
    kit: Path, tmp_path: Path, given: list[list[str]]
) -> None:
    assert demo(kit, tmp_path) == 0
    out = str(tmp_path / "cache" / "kit-toy" / "deployment")
    data, model = str(kit / "data"), str(kit / "model")
    assert given[0] == ["import", data, "--model-path", model, "--out", out, "--force"]
    assert given[1][:4] == ["verify", out, "--cases", str(kit / "cases.jsonl")]
    assert "--serve" in given[1] and given[1][given[1].index("--dtype") + 1] == "float32"
    assert "--messages" not in given[1]


def test_exit_stops_after_the_table(kit: Path, tmp_path: Path, given: list[list[str]]) -> None:
    assert demo(kit, tmp_path, "--exit") == 0
    assert "--serve" not in given[1]


def test_a_packed_one_is_unpacked_once(kit: Path, tmp_path: Path, given: list[list[str]]) -> None:
    assert demo(packed(kit), tmp_path) == 0
    model = tmp_path / "cache" / "kit-toy" / "model"
    assert (model / "config.json").read_text() == "toy" and str(model) in given[0]
    (kit.parent / "unpack.py").unlink()
    assert demo(kit, tmp_path) == 0


def test_messages_of_as_many_users_go_with_the_cases(
    kit: Path, tmp_path: Path, given: list[list[str]]
) -> None:
    for name, column, rows in (("a", "other", 2), ("b", "messages", 3), ("c", "messages", 2)):
        pq.write_table(pa.table({column: [json.dumps([])] * rows}), kit / "data" / "more" / f"{name}.parquet")
    assert demo(kit, tmp_path) == 0
    assert given[1][given[1].index("--messages") + 1] == str(kit / "data" / "more" / "c.parquet")


@pytest.mark.parametrize(("command", "count"), [("import", 1), ("verify", 2)])
def test_a_command_that_fails_ends_it(
    command: str, count: int, kit: Path, tmp_path: Path, given: list[list[str]]
) -> None:
    (tmp_path / f"{command} fails").touch()
    assert demo(kit, tmp_path) == 1
    assert len(given) == count


@pytest.mark.parametrize("missing", ["data", "cases.jsonl"])
def test_what_is_no_kit_is_named(
    missing: str, kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit / missing).rename(kit / "elsewhere")
    assert demo(kit, tmp_path) == 2
    assert f"{kit} has no {missing}: a kit holds data/, model/ and cases.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("unpack", "problem"),
    [(None, "is packed and there is no"), ("raise SystemExit('not the bytes')", "not the bytes")],
    ids=["no-unpack.py", "damaged"],
)
def test_what_cannot_be_unpacked_is_named_and_leaves_nothing(
    unpack: str | None, problem: str, kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(kit, unpack or "")
    if unpack is None:
        (kit.parent / "unpack.py").unlink()
    assert demo(kit, tmp_path) == 2
    assert problem in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("kit-toy/*"))
