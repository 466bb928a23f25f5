"""The launcher's folder in a place that others clean: it is held, and made again, or its loss is an error."""

import fcntl
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.run_folder import CACHE, PID_FILE, PREFIX, RunFolder, run_folder, sweep


def is_locked(path: Path) -> bool:
    """Whether a cleaner that asks for the lock leaves it alone, whichever kind it asks for."""
    refused = 0
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            refused += 1
        os.close(descriptor)
    return refused == 2


def assert_whole(folder: RunFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert is_locked(folder.path) and is_locked(folder.path / PID_FILE)
    assert (folder.path / PID_FILE).read_text() == f"{os.getpid()}\n"


def test_the_folder_itself_is_locked_and_so_is_its_pid_file(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        assert_whole(folder)


CLEANINGS: dict[str, Callable[[Path], object]] = {
    "all-of-it": shutil.rmtree,
    "the-parent": lambda path: shutil.rmtree(path.parent),
    "what-is-in-it": lambda path: [file.unlink() for file in path.iterdir()],
    "the-pid-file": lambda path: (path / PID_FILE).unlink(),
    "moved": lambda path: path.rename(path.with_name("away")),
    "opened-to-others": lambda path: path.chmod(0o777),
    "closed-to-all": lambda path: path.chmod(0),
    "a-pipe-for-the-pid-file": lambda path: ((path / PID_FILE).unlink(), os.mkfifo(path / PID_FILE)),
    "a-pipe-for-the-hidden-one": lambda path: ((path / PID_FILE).unlink(), os.mkfifo(path / f".{PID_FILE}")),
    "a-link-for-the-pid-file": lambda path: ((path / PID_FILE).unlink(), (path / PID_FILE).symlink_to("x")),
    "a-link-for-the-hidden-one": lambda path: (
        (path / PID_FILE).unlink(),
        (path / f".{PID_FILE}").symlink_to("x"),
    ),
}


@pytest.mark.parametrize("cleaning", CLEANINGS)
def test_what_was_cleaned_is_made_again(
    cleaning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = tmp_path / "tmp"
    parent.mkdir()
    with run_folder(parent) as folder:
        folder.keep()
        assert not caplog.records
        for times in (1, 2):
            CLEANINGS[cleaning](folder.path)
            folder.keep()
            folder.keep()
            assert_whole(folder)
            assert len(caplog.records) == times and "set TMPDIR" in caplog.text
            shutil.rmtree(parent / "away", ignore_errors=True)
        sweep(parent)
        assert_whole(folder)
    assert not list(parent.iterdir())


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "a-file": lambda path: path.touch(),
    "a-link": lambda path: path.symlink_to(path.with_name("elsewhere")),
    "a-dead-link": lambda path: path.symlink_to("nowhere"),
    "another-users-folder": lambda path: (path.mkdir(), os.chown(path, 12345, 12345)),
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_what_somebody_else_put_there_is_not_used(replacement: str, tmp_path: Path) -> None:
    if replacement == "another-users-folder" and os.geteuid():
        pytest.skip("only root can give a folder away")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with run_folder(tmp_path) as folder:
        shutil.rmtree(folder.path)
        REPLACEMENTS[replacement](folder.path)
        with pytest.raises(ConfigError, match=r"was removed and cannot be made again .*set TMPDIR"):
            folder.keep()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_descriptor_is_left_however_often_it_is_made_again(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            shutil.rmtree(folder.path)
            folder.keep()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_folders_in_the_place_of_sockets_are_moved_out_of_it(tmp_path: Path) -> None:
    """They are kept, for something may be mounted there; the one that is ours stays."""
    with run_folder(tmp_path) as folder:
        (folder.path / CACHE).mkdir()
        for name in ("decode-0", PID_FILE):
            (folder.path / name).unlink(missing_ok=True)
            (folder.path / name / "full").mkdir(parents=True)
        folder.keep()
        assert not (folder.path / "decode-0").exists() and (folder.path / CACHE).is_dir()
        assert len(list(folder.path.glob(".aside-*/full"))) == 2
        assert_whole(folder)


def test_locks_of_others_are_not_waited_for(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        shutil.rmtree(folder.path)
        folder.path.mkdir(mode=0o700)
        other = os.open(folder.path, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        folder.keep()
        os.close(other)
        assert is_locked(folder.path / PID_FILE)


def test_a_pipe_in_a_dead_launchers_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}dead").mkdir()
    os.mkfifo(tmp_path / f"{PREFIX}dead" / PID_FILE)
    sweep(tmp_path)
