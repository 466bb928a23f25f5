"""Where libraries keep a GPU's kernels, that two workers do not compile the same, and what the log says."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from xgr_runtime.cache import kernels
from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.errors import StartupError
from xgr_runtime.model.device import gpu_kernels
from xgr_runtime.model.device.gpu_kernels import FOLDERS, compiled_once, keep_gpu_kernels, told


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", *FOLDERS):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in FOLDERS:
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[KernelFolder]:
    folder = KernelFolder(tmp_path, "gpu")
    folder.use()
    yield folder
    folder.leave()


def flashinfer(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> ModuleType:
    """Its classes of modules, as in the releases that have two."""

    class JitSpec:
        name = "batch_prefill"

        def build(self) -> None:
            raise AssertionError("it is abstract")

        def build_and_load(self) -> str:
            self.build()
            return "module"

    class JitSpecNvcc(JitSpec):
        is_compiled = compiled

        def build(self, verbose: bool = False) -> None:
            self.is_compiled = True

    core = ModuleType("flashinfer.jit.core")
    vars(core).update(JitSpec=JitSpec, JitSpecNvcc=JitSpecNvcc)
    for name in ("flashinfer", "flashinfer.jit"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    return core


def test_libraries_keep_their_kernels_in_our_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/theirs")
    monkeypatch.setattr(gpu_kernels, "tool_path", lambda environ: "/a:/programs")
    folder = keep_gpu_kernels(tmp_path)
    assert folder is not None and folder.path.parent == tmp_path
    folder.leave()
    assert os.environ["FLASHINFER_WORKSPACE_BASE"] == str(folder.path / "flashinfer")
    assert os.environ["TRITON_CACHE_DIR"] == "/theirs", "what a user says stands"
    assert os.environ["PATH"] == "/a:/programs"


def test_where_nothing_is_kept_libraries_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert keep_gpu_kernels(None) is None
    assert keep_gpu_kernels(tmp_path / "missing") is None
    assert "kept where libraries do" in caplog.text
    assert not set(FOLDERS) & set(os.environ)


def test_two_workers_do_not_compile_the_same(folder: KernelFolder) -> None:
    """The second waits until the first is through, then finds all of it; a third does not wait at all."""
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.wait(10)
        with compiled_once(folder, ["decode", 64]):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with compiled_once(folder, ["decode", 64]):
        begun.set()
        other.join(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
    with folder.compiling(), compiled_once(folder, ["decode", 64]):
        order.append("third")
    assert order[-1] == "third"


def test_other_kernels_are_not_there_yet(folder: KernelFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for what in (["decode", 64], ["decode", 128], ["decode", 64]):
        with compiled_once(folder, what):
            pass
    assert caplog.text.count("for the first time") == 2


def test_what_failed_is_not_complete(folder: KernelFolder) -> None:
    with pytest.raises(RuntimeError), compiled_once(folder, ["decode"]):
        commands = [f"[{n}/9] nvcc -Wno-error {'-I/include ' * 200} -o a.o" for n in range(9)]
        raise RuntimeError("\n".join(commands) + "\nnvcc fatal")
    assert not list(folder.path.glob("*.complete"))
    with folder.compiling(stopping=lambda: pytest.fail("it is held")):
        pass


def test_flashinfers_builds_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    core = flashinfer(monkeypatch, compiled=False)
    original = core.JitSpecNvcc.build
    with told():
        spec = core.JitSpecNvcc()
        assert spec.build_and_load() == "module" and spec.is_compiled
    assert caplog.messages == [
        "compiling FlashInfer's batch_prefill",
        "compiled FlashInfer's batch_prefill in 0 s",
    ]
    assert core.JitSpecNvcc.build is original


def test_a_compiler_that_fails_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = flashinfer(monkeypatch, compiled=False)
    command = f"nvcc -Wno-error {'-I/include ' * 200} -o a.o"
    said = [
        "Ninja build failed.",
        f"[1/9] {command}",
        "FAILED: a.o",
        command,
        "#error -- unsupported GNU version!",
    ]

    def fail(spec: object) -> None:
        raise RuntimeError("\n".join([*said, "ninja: stopped"]))

    core.JitSpecNvcc.build = fail
    with (
        pytest.raises(StartupError, match=r"batch_prefill did not compile: #error -- unsupp.*CC") as error,
        told(),
    ):
        core.JitSpecNvcc().build_and_load()
    assert "\n" not in str(error.value) and "ninja: stopped" in caplog.text
    assert "-I/include" not in caplog.text, "commands, of which each has kilobytes"


def test_a_build_that_only_looks_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    core = flashinfer(monkeypatch, compiled=True)
    with told():
        core.JitSpecNvcc().build_and_load()
    assert not caplog.messages


@pytest.mark.parametrize("missing", [["JitSpecNvcc", "JitSpec"], ["JitSpecNvcc"], []], ids=len)
def test_releases_of_flashinfer_that_we_do_not_know_run(
    monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    core = flashinfer(monkeypatch, compiled=False)
    for name in missing:
        delattr(core, name)
    with told():
        pass


def test_tritons_kernels_are_told_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two compilations, as a listener hears of them: what was kept is none."""
    caplog.set_level(logging.INFO)
    compilation = SimpleNamespace(listener=None)
    knobs = ModuleType("triton.knobs")
    vars(knobs).update(compilation=compilation)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.knobs", knobs)
    with told():
        for name, microseconds, hit in [
            ("emit", 2_500_000, False),
            ("lay_out", 1e6, False),
            ("x", 9e6, True),
        ]:
            times = SimpleNamespace(total=microseconds)
            compilation.listener(
                src=None, metadata={"name": name}, metadata_group={}, times=times, cache_hit=hit
            )
    assert caplog.messages == ["compiled 2 of Triton's kernels in 3.5 s, emit in 2.5"]
    assert compilation.listener is None


def test_a_folder_of_other_versions_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = KernelFolder(tmp_path, "gpu").path
    assert before == KernelFolder(tmp_path, "gpu").path != KernelFolder(tmp_path).path
    monkeypatch.setattr(kernels, "version_of", lambda package: f"{package} 99")
    assert KernelFolder(tmp_path, "gpu").path != before
