"""A file that is kept is whole, or as it was before: its writer killed, its disk full, its folder closed."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from made_catalogs import build_from_arrays

from xgr_runtime.catalog import load_catalog
from xgr_runtime.errors import CatalogError, ConfigError
from xgr_runtime.files import check_writable, write_whole, writing_whole

SUPPORT = Path(__file__).parents[2] / "support"
WRITERS = {
    "bytes": "write_whole(path, b'n' * 1_000_000)",
    "catalog": "build_from_arrays(range(100_000), np.arange(200_000).reshape(-1, 2)).save(path)",
}


def run_writer(path: Path, writer: str, before: str) -> subprocess.CompletedProcess[str]:
    """The writer in a process of its own, after the line `before`."""
    code = f"""
        import os, resource, sys
        from pathlib import Path
        import numpy as np
        sys.path.append(sys.argv[2])
        from made_catalogs import build_from_arrays
        from xgr_runtime.files import write_whole
        path = Path(sys.argv[1])
        {before}
        {WRITERS[writer]}
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(SUPPORT)]
    return subprocess.run(command, timeout=120, capture_output=True, text=True)


KILL_POINTS = {
    "between-write-and-rename": "Path.replace = lambda *_: os.kill(os.getpid(), 9)",
    "before-the-sync": "os.fsync = lambda _: os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("point", KILL_POINTS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_killed_writer_leaves_the_old_file_and_hinders_no_other(
    writer: str, point: str, tmp_path: Path
) -> None:
    path = tmp_path / "kept.file"
    build_from_arrays(["1"], [[5]]).save(path)
    before = path.read_bytes()
    ended = run_writer(path, writer, KILL_POINTS[point])
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert path.read_bytes() == before and load_catalog(path).items == 1
    (left,) = {*tmp_path.iterdir()} - {path}  # what it had written lies beside it
    assert left.name.startswith(".") and left in tmp_path.glob("*.file")  # so it is hidden, and can be found
    assert run_writer(path, writer, "").returncode == 0
    assert {*tmp_path.iterdir()} == {left, path} and path.read_bytes() != before


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_grows_too_large_changes_nothing(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    ended = run_writer(path, writer, "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    assert ended.returncode == 1
    kind = "CatalogError" if writer == "catalog" else "ConfigError"
    assert f"{kind}: {path} cannot be written (File too large): make room there" in ended.stderr
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none" / "kept", "No such file.*name a file in a folder"),
        (lambda folder: folder, "no ordinary file"),
        (lambda folder: Path("/dev/null"), "no ordinary file"),
        (lambda folder: folder / ("x" * 300), "File name too long"),
    ],
    ids=["no-folder", "a-folder", "a-device", "long-name"],
)
def test_what_cannot_be_written_is_refused(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        write_whole(make(tmp_path), b"new")
    assert not list(tmp_path.iterdir())


def test_a_catalog_says_so_in_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="No such file"):
        build_from_arrays(["1"], [[5]]).save(tmp_path / "none" / "kept")


@pytest.mark.parametrize(
    ("before", "secret", "after"),
    [(None, False, 0o640), (None, True, 0o600), (0o604, False, 0o604), (0o644, True, 0o600)],
)
def test_modes(before: int | None, secret: bool, after: int, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    if before is not None:
        path.touch()
        path.chmod(before)
    mask = os.umask(0o026)
    try:
        write_whole(path, b"new", secret)
    finally:
        os.umask(mask)
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (after, b"new")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "kept"
    link.symlink_to(tmp_path / "data" / "file")
    write_whole(link, b"new")
    assert link.is_symlink() and (tmp_path / "data" / "file").read_bytes() == b"new"


def test_two_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "kept [1]*"
    with writing_whole(path) as first:
        first.write(b"first")
        write_whole(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), writing_whole(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_path_is_checked_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "kept", "--out")
    for path in (tmp_path, tmp_path / "none" / "kept", Path("/dev/null")):
        with pytest.raises(ConfigError, match="--out"):
            check_writable(path, "--out")
