"""What the built wheel holds: every file of every package, and xgr_kernels at the top level."""

import configparser
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "xgr_runtime": ROOT / "xgr_runtime",
    "any_worker": ROOT / "any_worker",
    "prefill_worker": ROOT / "prefill_worker",
    "decode_worker": ROOT / "decode_worker",
    "router": ROOT / "router",
    "xgr_kernels": ROOT / "kernels" / "xgr_kernels",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    built = next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def wheel_files(wheel: zipfile.ZipFile) -> set[str]:
    return set(wheel.namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_holds_every_file_of_the_package(wheel_files: set[str], package: str) -> None:
    source = PACKAGES[package]
    held = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"{package}/{path.relative_to(source).as_posix()}" for path in held}
    assert f"{package}/__init__.py" in expected
    assert expected <= wheel_files


def test_has_no_other_top_level_name(wheel_files: set[str]) -> None:
    names = {name.split("/")[0] for name in wheel_files}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("group", ["console_scripts", "sglang.srt.plugins"])
def test_entry_points_name_what_it_holds(wheel: zipfile.ZipFile, wheel_files: set[str], group: str) -> None:
    entries = configparser.ConfigParser()
    name = next(name for name in wheel_files if name.endswith(".dist-info/entry_points.txt"))
    entries.read_string(wheel.read(name).decode())
    for target in entries[group].values():
        module, _, function = target.partition(":")
        path = module.replace(".", "/")
        held = wheel_files & {f"{path}.py", f"{path}/__init__.py"}
        assert held, f"no module {module}"
        assert function in wheel.read(held.pop()).decode()


def test_every_folder_with_code_is_a_package() -> None:
    for source in PACKAGES.values():
        for path in source.rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"
