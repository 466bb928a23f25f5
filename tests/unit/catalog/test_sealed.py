"""A catalog read from a file whose owner changes it: what was taken stays as it was, or is refused."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_catalogs import example

from xgr_runtime.catalog import Catalog, load_catalog, seal_catalog, verify, verify_file
from xgr_runtime.catalog import sealed as module
from xgr_runtime.catalog.file import sealed_file
from xgr_runtime.catalog.sealed import inherited_path, is_sealed
from xgr_runtime.cli import main
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Path], object]


def overwrite(path: Path, content: bytes, at: int = 0) -> None:
    """As `cp`, `scp` and `rsync --inplace` do it: into the file that is there."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def other_bytes(path: Path) -> bytes:
    return random.Random(0).randbytes(path.stat().st_size)


def copy_over(path: Path, other: Catalog) -> None:
    beside = path.with_name("beside")
    other.save(beside)
    os.truncate(path, 0)
    overwrite(path, beside.read_bytes())


CHANGES: dict[str, Change] = {
    "same-size": lambda path: overwrite(path, other_bytes(path)),
    "zeros": lambda path: overwrite(path, bytes(path.stat().st_size)),
    "one-array": lambda path: overwrite(path, b"\xff" * 256, path.stat().st_size // 2),
    "same-catalog-of-other-items": lambda path: copy_over(path, example(depth=3, items=199)),
    "smaller": lambda path: copy_over(path, example(depth=1, items=3)),
    "larger": lambda path: copy_over(path, example(depth=8)),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "header-alone": lambda path: os.truncate(path, 100),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("away")),
    "built-over": lambda path: example(depth=2).save(path),
}
WAYS: dict[str, Callable[[Path], Catalog]] = {
    "open": Catalog.open,
    "verify": verify_file,
    "load": load_catalog,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_taken_catalog_stays_as_it_was(change: str, way: str, built: Path) -> None:
    taken = WAYS[way](built)
    CHANGES[change](built)
    verify(taken)
    assert taken.version == example().version
    assert taken.leaves_of_items(["item-7", "none"]).tolist()[1] == -1
    for name, array in example().arrays.items():
        assert (taken.arrays[name] == array).all(), name


@pytest.mark.parametrize("change", CHANGES)
def test_a_launchers_catalog_stays_as_it_was_for_children_that_start_later(change: str, built: Path) -> None:
    memory, version = seal_catalog(built)
    with memory:
        CHANGES[change](built)
        assert load_in_a_child(memory.fileno()) == f"{version} True"


LOAD = """
import os, sys
from pathlib import Path
from xgr_runtime.catalog import load_catalog

catalog = load_catalog(sys.argv[1])
maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
mapped = {int(fields[4]) for fields in maps if fields[-2:-1] == ["/memfd:catalog.xgr"]}
print(catalog.version, mapped == {os.stat(sys.argv[1]).st_ino})
"""


def load_in_a_child(descriptor: int) -> str:
    """What a process that inherits it says: the version, and whether it took it without a copy."""
    command = [sys.executable, "-c", LOAD, f"/proc/self/fd/{descriptor}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, pass_fds=[descriptor])
    return ended.stdout.strip() or ended.stderr


@pytest.mark.parametrize("source", ["built", "index.json"])
def test_nobody_can_write_to_what_is_served(source: str, built: Path) -> None:
    path = built
    if source != "built":
        path = built.with_name(source)
        path.write_text('{"a": [1, 2], "b": [1, 3]}')
    memory, version = seal_catalog(path)
    with memory:
        assert is_sealed(memory) and load_catalog(inherited_path(memory)).version == version
        for attack in (
            lambda: os.pwrite(memory.fileno(), b"x", 100),
            lambda: os.ftruncate(memory.fileno(), 10),
            lambda: os.truncate(inherited_path(memory), 0),
            lambda: os.truncate(inherited_path(memory), 1 << 20),
            lambda: overwrite(path.parent / inherited_path(memory), b"x"),
            lambda: fcntl.fcntl(memory.fileno(), fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(OSError):
                attack()
        assert load_catalog(inherited_path(memory)).version == version


def test_a_disk_file_that_a_descriptor_leads_to_is_no_sealed_memory(built: Path) -> None:
    """It is copied, and verified as any other: here all its checksums hold, but not what they are of."""
    catalog = example()
    wrong = {name: array.copy() for name, array in catalog.arrays.items()}
    wrong["lo.1"][3] += 10**6
    Catalog(catalog.version, 50, catalog.templates, wrong).save(built)
    with built.open("rb") as file, pytest.raises(CatalogError, match=r"lo\.1"):
        load_catalog(inherited_path(file))


def test_sealed_memory_with_wrong_sums_is_refused(built: Path) -> None:
    overwrite(built, b"\xff" * 256, built.stat().st_size // 2)
    with sealed_file(built) as memory, pytest.raises(CatalogError, match="checksum differs"):
        load_catalog(inherited_path(memory))


@pytest.mark.parametrize("change", ["one-array", "half", "empty", "larger"])
@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_changes_while_it_is_taken_is_refused_or_whole(
    way: str, change: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.shutil.copyfileobj  # type: ignore[attr-defined]

    def copy_meanwhile(source: Any, target: Any, length: int) -> None:
        target.write(source.read(1000))
        CHANGES[change](built)
        real(source, target, length)

    monkeypatch.setattr(module.shutil, "copyfileobj", copy_meanwhile)  # type: ignore[attr-defined]
    if (way, change) == ("open", "one-array"):
        Catalog.open(built)  # reads the header alone
        return
    with pytest.raises(CatalogError, match=r"copy it again|build it again"):
        WAYS[way](built)


@pytest.mark.parametrize("kind", ["pipe", "folder", "/dev/zero"])
def test_what_may_never_end_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind  # an absolute kind is itself
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(CatalogError, match="ordinary file"):
        Catalog.open(path)


def test_no_descriptor_stays_open(built: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(built.read_bytes()[:-1])
    before = descriptors()
    kept = [load_catalog(built), Catalog.open(built), verify_file(built)]
    for path in (tmp_path / "damaged", tmp_path / "none", tmp_path):
        with pytest.raises(CatalogError):
            seal_catalog(path)
    memory, _ = seal_catalog(built)
    memory.close()
    assert descriptors() == before + len(kept)  # mmap keeps one of its own for each


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_file_that_goes_away_while_it_is_looked_at(
    command: str, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = module.shutil.copyfileobj  # type: ignore[attr-defined]

    def copy_and_lose(source: Any, target: Any, length: int) -> None:
        real(source, target, length)
        os.truncate(built, 0)
        built.unlink()

    monkeypatch.setattr(module.shutil, "copyfileobj", copy_and_lose)  # type: ignore[attr-defined]
    assert main(["catalog", command, str(built)]) == 0
    assert example().version in capsys.readouterr().out
