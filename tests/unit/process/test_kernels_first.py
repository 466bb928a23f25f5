"""A launcher's look at a GPU's tools, which it takes as seriously as kernels are missing."""

from pathlib import Path

import pytest

from xgr_runtime.cache.kernels import KernelFolder
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher import kernels_first
from xgr_runtime.launcher.kernels_first import check_tools


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
