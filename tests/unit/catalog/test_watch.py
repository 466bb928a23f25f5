"""What the log says of a catalog on disk that is no longer the one that is served."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from small_catalogs import example
from until import until

from xgr_runtime.catalog import watch as module
from xgr_runtime.catalog.watch import SourceWatch
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAID = "changed on disk"


def keep_times(path: Path, content: bytes) -> None:
    """Other bytes, as many, with the old time: `rsync --inplace -t` can do that."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "same-size-and-time": lambda path: keep_times(path, bytes(path.stat().st_size)),
    "truncated": lambda path: os.truncate(path, 10),
    "deleted": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("away")),
    "built-over": lambda path: example(depth=2).save(path),
    "a-folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_said_once(change: str, built: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = SourceWatch(built)
    watch.look("v1")
    assert not caplog.records
    CHANGES[change](built)
    for _ in range(3):
        watch.look("v1")
    (record,) = caplog.records
    text = record.getMessage()
    assert str(built) in text and "still serving version v1, restart to take the new one" in text
    assert ("it is gone" in text) == (change in ("deleted", "renamed"))


def test_a_long_copy_is_said_once_and_the_next_one_again(
    built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = SourceWatch(built)
    for copy in range(1, 3):
        for part in range(5):
            built.write_bytes(bytes(100 * copy + part))
            watch.look("v1")
        watch.look("v1")
        assert len(caplog.records) == copy


@pytest.mark.parametrize("name", ["index.json", "catalog.json"])
def test_a_source_and_its_template_are_watched(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "index.json"
    source.write_text('{"a": [1, 2]}')
    watch = SourceWatch(source)
    (tmp_path / name).write_text("{}")
    watch.look("v1")
    assert SAID in caplog.text and str(source) in caplog.text


def test_a_built_file_has_its_template_inside(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = SourceWatch(built)
    built.with_name("catalog.json").write_text("{}")
    watch.look("v1")
    assert not caplog.records


def test_it_is_looked_at_while_a_block_runs(
    built: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    with SourceWatch(built).looking("v1"):
        built.unlink()
        until(lambda: SAID in caplog.text, "it is said", 20)


def test_a_file_that_is_not_there_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="check the path"):
        SourceWatch(tmp_path / "none")
