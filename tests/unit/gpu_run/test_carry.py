"""What travels to a machine without a network: for the right Python, not too large, and it imports."""

from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import first
import pytest


@pytest.fixture
def carry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose packages are two that are made here."""
    loader = SourceFileLoader("carry", str(Path(first.__file__).with_name("carry")))
    spec = spec_from_loader("carry", loader)
    assert spec
    module: Any = module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "BASE", {"carried-one==1": "carried_one"})
    monkeypatch.setattr(module, "SGLANG", {"sglang-kernel==1": "sgl_kernel"})
    monkeypatch.setattr(module, "SGLANG_WITH_NEEDS", {"carried-two": "carried_two"})
    monkeypatch.setattr(module, "_install", install)
    return module


def install(asked: Any, folder: Path, names: Iterable[str], *more: str) -> None:
    """As pip would leave it; the kernels are for a GPU."""
    for name in names:
        package, _, version = name.partition("==")
        module = "sgl_kernel" if package == "sglang-kernel" else package.replace("-", "_")
        (folder / module).mkdir(parents=True, exist_ok=True)
        (folder / f"{module}-{version or 2}.dist-info").mkdir(exist_ok=True)
        text = "raise ImportError('libcuda.so.1')" if module == "sgl_kernel" else ""
        (folder / module / "__init__.py").write_text(text)
        (folder / module / "flash_ops.abi3.so").write_bytes(bytes(1000))


def call(carry: Any, monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr("sys.argv", ["carry", *map(str, args)])
    code: int = carry.main()
    return code


def test_what_is_prepared(
    carry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(carry, "_torch_has_cuda", lambda: False)
    assert call(carry, monkeypatch, "--out", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"base.tar.xz", "sglang.tar.xz", "packages.txt"}
    assert (tmp_path / "packages.txt").read_text() == "carried_one==1\ncarried_two==2\nsgl_kernel==1\n"
    said = capsys.readouterr().out
    assert "carried_one: imports" in said and "carried_two: imports" in said
    assert "sgl_kernel: not tried: torch is for a CPU here" in said
    assert "MB, at most 60" in said


def test_large_libraries_that_nobody_calls_stay_behind(carry: Any, tmp_path: Path) -> None:
    install(None, tmp_path, ["sglang-kernel==1"])
    carry.drop(tmp_path)
    assert [path.name for path in (tmp_path / "sgl_kernel").iterdir()] == ["__init__.py"]


def test_what_does_not_import_or_travel_fails(
    carry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(carry, "BASE", {"carried-one==1": "carried_none"})
    assert call(carry, monkeypatch, "--out", tmp_path / "a", "--without-sglang") == 1
    assert "not fit: carried_none" in capsys.readouterr().out
    monkeypatch.setattr(carry, "BASE", {"carried-one==1": "carried_one"})
    monkeypatch.setattr(carry, "MOST", 10)
    assert call(carry, monkeypatch, "--out", tmp_path / "b", "--without-sglang") == 1


def test_another_python_is_not_tried(
    carry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(carry, monkeypatch, "--out", tmp_path, "--python", "3.99") == 0
    assert "not tried: they are for Python 3.99" in capsys.readouterr().out


def test_a_platform_takes_the_wheels_of_older_ones(carry: Any) -> None:
    tags = carry.older("manylinux_2_17_x86_64")
    assert tags[:2] == ["manylinux_2_17_x86_64", "manylinux_2_16_x86_64"]
    assert tags[-3:] == ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    assert carry.older("macosx_14_0_arm64") == ["macosx_14_0_arm64"]
