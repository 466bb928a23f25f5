"""Compiled kernels: a folder per content, compiled by one process at a time, removed when nobody uses it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xgr_runtime.cache import kernels
from xgr_runtime.cache.kernels import KEPT, KernelFolder, kernel_key, processor


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[KernelFolder]:
    folder = KernelFolder(tmp_path)
    folder.use()
    yield folder
    folder.leave()


def test_any_edit_of_any_source_makes_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("called.py", "caller.py")]
    for file in files:
        file.write_text("x = 1\n")
    monkeypatch.setattr(kernels, "_sources", lambda: files)
    keys = [kernel_key()]
    for file in files:
        file.write_text("x = 2\n")
        keys.append(kernel_key())
    assert len(set(keys)) == 3


def test_other_installations_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler looks at paths and times: what is complete for one is nothing for another."""

    def key(place: str, written: int) -> str:
        file = tmp_path / place / "kernel.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("x = 1\n")
        os.utime(file, (written, written))
        monkeypatch.setattr(kernels, "_sources", lambda: [file])
        return kernel_key()

    assert key("here", 1) == key("here", 1)
    assert len({key("here", 1), key("there", 1), key("here", 2)}) == 3


def test_the_sources_are_those_of_the_kernels() -> None:
    names = {path.name for path in kernels._sources()}
    assert {"compiled.py", "cpu_kernels.py", "tiles.py"} <= names
    assert len(processor()) > 2


def _file_for_folder(path: Path) -> None:
    path.write_text("no folder")


def _link(path: Path) -> None:
    path.symlink_to(path.parent)


def _folders_for_files(path: Path) -> None:
    for name in ("in-use", "compiling", "float32.complete"):
        (path / name).mkdir(parents=True)


def _pipe_for_mark(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "float32.complete")


@pytest.mark.parametrize("damage", [_file_for_folder, _link, _folders_for_files, _pipe_for_mark])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = KernelFolder(tmp_path)
    damage(folder.path)
    assert not folder.ready("float32")
    folder.use()
    with folder.compiling():
        folder.complete("float32")
    folder.leave()
    assert folder.ready("float32")
    assert [path.name for path in tmp_path.iterdir()] == [folder.path.name]


def test_another_process_waits_while_one_compiles(folder: KernelFolder) -> None:
    entered = threading.Event()

    def compile_too() -> None:
        with folder.compiling():
            entered.set()

    with folder.compiling():
        other = threading.Thread(target=compile_too)
        other.start()
        assert not entered.wait(0.3)
        with folder.compiling(stopping=lambda: True):  # whoever was asked to stop does not wait
            pass
    other.join(10)
    assert entered.is_set()


def test_a_type_is_complete_by_itself(folder: KernelFolder, tmp_path: Path) -> None:
    folder.complete("float32")
    assert folder.ready("float32") and not folder.ready("bfloat16")
    assert KernelFolder(tmp_path).ready("float32")


def test_old_folders_go_but_none_that_is_in_use(folder: KernelFolder, tmp_path: Path) -> None:
    used = tmp_path / "kernels-used"
    used.mkdir()
    for number in range(KEPT + 3):
        (tmp_path / f"kernels-{number}").mkdir()
        os.utime(tmp_path / f"kernels-{number}", (number + 1, number + 1))
    (tmp_path / "costs").mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_SH); "
    code += "print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(used / "in-use")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout and user.stdin
        user.stdout.readline()
        os.utime(used, (0, 0))
        folder.complete("float32")
        user.stdin.close()
    left = {path.name for path in tmp_path.iterdir()}
    latest = {f"kernels-{number}" for number in range(3, KEPT + 3)}
    assert left == {*latest, "kernels-used", "costs", folder.path.name}


def test_old_folders_have_a_bound_of_bytes(
    folder: KernelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those used last stay as far as they fit; what belongs to another kind is not counted."""
    monkeypatch.setattr(kernels, "KEPT_BYTES", 250)
    for number in range(3):
        for name in (f"kernels-{number}", f"gpu-kernels-{number}"):
            (tmp_path / name / "flashinfer").mkdir(parents=True)
            (tmp_path / name / "flashinfer/module.so").write_bytes(bytes(100))
            os.utime(tmp_path / name, (number + 1, number + 1))
    folder.complete("float32")
    left = {path.name for path in tmp_path.iterdir()} - {folder.path.name}
    assert left == {"kernels-1", "kernels-2", *(f"gpu-kernels-{number}" for number in range(3))}
