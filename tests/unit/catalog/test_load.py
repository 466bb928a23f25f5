"""What servers call, and the command line."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import load_catalog
from xgr_runtime.cli import main
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path


def xgr(*arguments: str | Path) -> int:
    return main(["catalog", *map(str, arguments)])


@pytest.fixture
def index(tmp_path: Path) -> Path:
    items = {"1": ["<a_1>", "<b_1>"], "2": ["<a_1>", "<b_2>"], "3": ["<a_1>", "<b_2>"]}
    (tmp_path / "index.json").write_text(json.dumps(items))
    declared = {"sid_format": "<a_{0}><b_{1}>"}  # of the checkpoint's three levels
    (tmp_path / "catalog.json").write_text(json.dumps(declared))
    return tmp_path / "index.json"


def test_a_source_is_built_in_memory_and_says_so(
    index: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        catalog = load_catalog(index, checkpoint)
    assert (catalog.leaves, catalog.items) == (2, 3)
    assert "building the catalog in memory" in caplog.text


def test_a_built_file_must_fit_the_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "c.xgr"
    build_from_arrays(["1"], [[123]]).save(path)
    assert load_catalog(path).vocab_size_needed == 124
    with pytest.raises(CatalogError, match=r"token 123 is out of vocabulary, the checkpoint has 123 tokens"):
        load_catalog(path, checkpoint)
    build_from_arrays(["1"], [[5]]).save(path)
    assert load_catalog(path, checkpoint).items == 1
    assert load_catalog(path, checkpoint).vocab_size == 123


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.xgr", tmp_path):
        with pytest.raises(CatalogError, match="cannot be read"):
            load_catalog(path)


def test_build_inspect_verify(
    index: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.xgr"
    assert xgr("build", index, "--out", out, "--model-path", checkpoint) == 0
    assert "3 items on 2 leaves" in capsys.readouterr().out
    assert xgr("inspect", out) == 0
    lines = capsys.readouterr().out.splitlines()
    version = load_catalog(index, checkpoint).version
    assert f"version      {version}" in lines
    assert "collisions   2 items share a SID with another, at most 2 on one" in lines
    assert "level 0      1 nodes, children per node above: mean 1.00, max 1" in lines
    assert "level 1      2 nodes, children per node above: mean 2.00, max 2" in lines
    assert "template default: prefix [1], separator [], suffix [], all items that fit" in lines
    assert xgr("verify", out) == 0
    assert capsys.readouterr().out == f"{out}: ok, version {version}\n"


def test_errors_are_one_line_and_exit_2(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.xgr"
    assert xgr("build", index, "--out", out) == 2
    assert xgr("inspect", index) == 2
    out.write_bytes(b"XGRCATLG" + bytes(100))
    assert xgr("verify", out) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 3
    assert "line 1, item '1': token '<a_1>' is a string and there is no tokenizer" in lines[0]
    assert "is not a built catalog" in lines[1]
    assert "has format 0" in lines[2]
