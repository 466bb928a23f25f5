"""Where things are kept for the next start: the first folder that is ours and can be written."""

import os
import stat
from pathlib import Path

import pytest

from xgr_runtime.cache.folder import cache_folder
from xgr_runtime.errors import ConfigError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(folder))
    return folder


def unusable(tmp_path: Path) -> str:
    """A file, below which nobody can make a folder, root neither."""
    (tmp_path / "file").touch()
    return str(tmp_path / "file")


def test_the_setting_comes_first_then_xdg_then_home(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path)}
    assert cache_folder(str(tmp_path / "mine" / "deep"), environ) == tmp_path / "mine" / "deep"
    assert cache_folder("", environ) == tmp_path / "xdg" / "xgr-runtime"
    assert cache_folder("", {"HOME": str(tmp_path)}) == tmp_path / ".cache" / "xgr-runtime"
    assert cache_folder("none", environ) is None


@pytest.mark.parametrize("home", ["", "/nonexistent", "relative", "file"])
@pytest.mark.parametrize("xdg", ["", "relative", "file"])
def test_without_a_home_it_is_a_private_one(home: str, xdg: str, tmp_path: Path, temporary: Path) -> None:
    there = {"file": unusable(tmp_path)}
    environ = {"HOME": there.get(home, home), "XDG_CACHE_HOME": there.get(xdg, xdg)}
    folder = cache_folder("", environ)
    assert folder is not None and folder.parent == temporary
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder("", environ) == folder
    assert not Path("/nonexistent").exists()


@pytest.mark.parametrize("squat", ["link", "open to others", "another's", "file"])
def test_a_squatted_folder_is_not_used(
    squat: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache_folder("", {})
    assert folder is not None
    folder.rmdir()
    if squat == "link":
        (tmp_path / "theirs").mkdir()
        folder.symlink_to(tmp_path / "theirs")
    elif squat == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777 if squat == "open to others" else 0o755)
    if squat == "another's":
        named, uid = f"{folder}", os.geteuid()
        monkeypatch.setattr("os.geteuid", lambda: uid + 1)
        Path(named).rename(temporary / f"xgr_runtime-{uid + 1}")
    assert cache_folder("", {}) is None
    assert not list(tmp_path.glob("theirs/*"))


def test_one_line_says_that_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: unusable(tmp_path))
    assert cache_folder("", {"HOME": "/nonexistent"}) is None
    (record,) = caplog.records
    assert "--cache-folder" in record.getMessage()


@pytest.mark.parametrize("name", ["file/below", "open", "nul\0", "x" * 300, "link"])
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, tmp_path: Path) -> None:
    unusable(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ConfigError, match="--cache-folder"):
        cache_folder(f"{tmp_path}/{name}")
    (tmp_path / "open" / "inside").mkdir()
    assert cache_folder(str(tmp_path / "open" / "inside"))
