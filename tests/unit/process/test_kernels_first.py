"""What a launcher looks at before its workers: a GPU's tools, and whether kernels have to compile."""

from pathlib import Path

import pytest

from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher import kernels_first
from xgr_runtime.launcher.kernels_first import check_tools, starting


@pytest.mark.parametrize("before", [False, True])
def test_compilers_are_needed_until_something_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    folder = KernelFolder(tmp_path, "gpu")
    folder.use()
    if before:
        folder.complete("prefill")
    folder.leave()
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(kernels_first, "check_toolchain", lambda device, first: asked.append((device, first)))
    check_tools(ServeConfig(model_path="m", catalog="c", device="cuda:1", cache_folder=str(tmp_path)))
    assert asked == [("cuda:1", not before)]


def test_on_a_cpu_no_tool_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_first, "check_toolchain", lambda *_, **__: pytest.fail("looked"))
    check_tools(ServeConfig(model_path="m", catalog="c"))


def test_a_start_that_compiles_says_so(tmp_path: Path) -> None:
    config = ServeConfig(model_path="m", catalog="c", dtype="float32", cache_folder=str(tmp_path))
    assert starting(config).endswith("(kernels compile first: a minute or two)")
    folder = KernelFolder(tmp_path)
    folder.use()
    folder.complete("float32")
    folder.leave()
    assert starting(config) == "Starting router, prefill worker and decode worker ..."
