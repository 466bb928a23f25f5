"""The checks of a GPU's toolchain, in folders made for them: what is missing is named with its remedy."""

import ctypes
import importlib.util
import logging
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xgr_runtime.config import surroundings, toolchain
from xgr_runtime.config.surroundings import Surroundings, tool_path
from xgr_runtime.config.toolchain import Diagnosis, check_toolchain, diagnose
from xgr_runtime.errors import ConfigError

NO_CUDART = "echo 'c++: warning: x'; echo '/usr/bin/ld: cannot find -lcudart: no such file' >&2; exit 1"
NEW_GCC = "echo 'host_config.h(143): warning: x'; echo 'error: #error -- unsupported GNU version!'; exit 1"


class Machine:
    """A folder with all that is needed, to take something away from."""

    def __init__(self, root: Path) -> None:
        self.cuda, self.bin, self.headers = root / "cuda", root / "bin", root / "python"
        for name in ("ninja", "c++", "gcc"):
            program(self.bin / name)
        self.nvcc("12.8")
        self.headers.mkdir()
        (self.headers / "Python.h").touch()
        self.around = Surroundings(
            environ={"PATH": str(self.bin), "CUDA_HOME": str(self.cuda)},
            headers=self.headers,
            torch_cuda=(12, 8),
            driver_cuda=(12, 9),
            default_cuda=root / "default",
            thorough=True,
        )

    def nvcc(self, version: str, trial: str = "true") -> None:
        told = f"echo 'Cuda compilation tools, release {version}, V{version}.93'"
        program(self.cuda / "bin/nvcc", f'if [ "$1" = --version ]; then {told}; else {trial}; fi')

    def without(self, name: str) -> None:
        (self.bin / name).unlink()


def program(path: Path, script: str = "true") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{shutil.which('sh')}\n{script}\n")
    path.chmod(0o700)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    # Programs of the environment that these tests run in count as well.
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "scripts"))
    return Machine(tmp_path)


def wrong(around: Surroundings) -> list[Diagnosis]:
    return [found for found in diagnose(around) if found.remedy]


def test_nothing_is_missing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    assert len(diagnose(machine.around)) == 9 and not wrong(machine.around)
    check_toolchain("cuda:1", first=True, around=machine.around)
    assert not caplog.records


def test_nvcc_is_tried_only_when_that_is_asked_for(machine: Machine) -> None:
    machine.nvcc("12.8", NEW_GCC)
    assert not wrong(replace(machine.around, thorough=False))


def test_compilers_get_what_flashinfer_gives_them(machine: Machine, tmp_path: Path) -> None:
    program(machine.bin / "c++", f'echo "$@" > {tmp_path}/linked')
    machine.nvcc("12.8", f'echo "$@" > {tmp_path}/compiled')
    environ = {**machine.around.environ, "CC": str(machine.bin / "gcc")}
    assert not wrong(replace(machine.around, environ=environ))
    assert (
        f"-L{machine.cuda}/lib64 -L{machine.cuda}/lib64/stubs -lcudart" in (tmp_path / "linked").read_text()
    )
    assert f"empty.cu -ccbin {machine.bin}/gcc" in (tmp_path / "compiled").read_text()


@pytest.mark.parametrize(
    ("spoil", "what", "remedy"),
    [
        (lambda m: m.without("ninja"), "ninja", "pip install ninja"),
        (lambda m: m.without("c++"), "C++ compiler", "apt-get install g++"),
        (lambda m: m.without("gcc"), "C compiler", "apt-get install gcc"),
        (lambda m: (m.headers / "Python.h").unlink(), "Python's headers", "-dev"),
        (lambda m: (m.cuda / "bin/nvcc").unlink(), "nvcc", "set CUDA_HOME"),
        (lambda m: program(m.cuda / "bin/nvcc", "exit 1"), "nvcc", "cuda-toolkit-12-8"),
        (lambda m: m.nvcc("12.4"), "nvcc", "12.8"),
        (lambda m: m.nvcc("13.0"), "nvcc", "12.8"),
        (lambda m: program(m.bin / "c++", NO_CUDART), "CUDA's libraries", "set CUDA_HOME"),
        (lambda m: m.nvcc("12.8", NEW_GCC), "nvcc's trial", "set CC and CXX"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    machine: Machine, spoil: Callable[[Machine], object], what: str, remedy: str
) -> None:
    spoil(machine)
    (found,) = wrong(machine.around)
    assert found.what == what and remedy in found.remedy
    with pytest.raises(ConfigError, match=r"^--device cuda cannot be used here: ") as error:
        check_toolchain("cuda", first=True, around=machine.around)
    assert str(found) in str(error.value) and "\n" not in str(error.value)
    assert "warning" not in found.found


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        ({"torch_cuda": None}, "torch", "--device cpu"),
        ({"driver_cuda": None}, "NVIDIA driver", "--device cpu"),
        ({"torch_cuda": (13, 0)}, "NVIDIA driver", "whl/cu129"),
    ],
)
def test_without_a_usable_gpu_nothing_else_is_asked_for(
    machine: Machine, change: dict[str, object], what: str, remedy: str
) -> None:
    machine.without("ninja")
    (found,) = wrong(replace(machine.around, **change))  # type: ignore[arg-type]
    assert found.what == what and remedy in found.remedy


def test_a_newer_driver_runs_what_is_older(machine: Machine) -> None:
    assert not wrong(replace(machine.around, driver_cuda=(13, 1)))
    assert not wrong(replace(machine.around, driver_cuda=(12, 0)))  # of one major version any minor one does


def test_kernels_that_came_as_a_package_need_no_nvcc(machine: Machine) -> None:
    machine.without("ninja")
    shutil.rmtree(machine.cuda)
    assert not wrong(replace(machine.around, precompiled=True))
    machine.without("gcc")  # Triton's are compiled all the same
    (found,) = wrong(replace(machine.around, precompiled=True))
    assert found.what == "C compiler"


def test_everything_that_is_missing_is_told_on_a_line_of_its_own(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.without("ninja")
    machine.without("gcc")
    with pytest.raises(ConfigError, match=r"ninja.*; all 2 are told above"):
        check_toolchain("cuda", first=True, around=machine.around)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "pip install ninja" in caplog.messages[0] and "apt-get install gcc" in caplog.messages[1]


def test_what_was_compiled_before_may_run_without_compilers(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.without("ninja")
    check_toolchain("cuda", first=False, around=machine.around)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "pip install ninja" in caplog.text
    with pytest.raises(ConfigError, match="NVIDIA driver"):
        check_toolchain("cuda", first=False, around=replace(machine.around, driver_cuda=None))


def test_cuda_is_looked_for_where_flashinfer_does(machine: Machine, tmp_path: Path) -> None:
    around = replace(machine.around, environ={"PATH": str(machine.bin)})
    assert around.cuda_home == around.default_cuda
    program(machine.bin / "nvcc")
    assert around.cuda_home == machine.bin.parent
    assert replace(around, environ={**around.environ, "CUDA_PATH": "/c"}).cuda_home == Path("/c")


@pytest.mark.parametrize("variable", ["CC", "CXX"])
def test_a_compiler_that_is_named_has_to_be_there(machine: Machine, variable: str) -> None:
    environ = {**machine.around.environ, variable: "/nowhere/compiler"}
    (found,) = wrong(replace(machine.around, environ=environ))
    assert f"{variable}=/nowhere/compiler" in found.found and "unset" in found.remedy
    assert not wrong(replace(machine.around, environ={**environ, variable: "gcc -m64"}))


def test_programs_of_an_environment_are_found_without_activating_it(machine: Machine, tmp_path: Path) -> None:
    machine.without("ninja")
    program(tmp_path / "scripts/ninja")
    assert not wrong(machine.around)
    assert tool_path({"PATH": "/a"}) == f"/a:{tmp_path / 'scripts'}"
    assert tool_path({"PATH": f"/a:{tmp_path / 'scripts'}"}) == f"/a:{tmp_path / 'scripts'}"


@pytest.mark.parametrize(
    ("version", "code", "expected"), [(12090, 0, (12, 9)), (13000, 0, (13, 0)), (0, 999, None)]
)
def test_the_driver_says_which_cuda_it_runs(
    monkeypatch: pytest.MonkeyPatch, version: int, code: int, expected: tuple[int, int] | None
) -> None:
    def tell(pointer: Any) -> int:
        pointer._obj.value = version
        return code

    monkeypatch.setattr(ctypes, "CDLL", lambda library: SimpleNamespace(cuDriverGetVersion=tell))
    assert surroundings._cuda_of_driver() == expected


def test_without_its_library_there_is_no_driver() -> None:
    assert surroundings._cuda_of_driver("libno-such-driver.so.1") is None


@pytest.mark.parametrize(
    ("content", "expected"), [("cuda = '13.0'", (13, 0)), ("cuda = None", None), ("", None), (None, None)]
)
def test_torch_is_asked_for_its_build_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: tuple[int, int] | None
) -> None:
    if content is not None:
        (tmp_path / "version.py").write_text(content)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert surroundings._cuda_of_torch() == expected


def test_on_a_cpu_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "look_around", lambda thorough: pytest.fail("looked"))
    check_toolchain("cpu", first=True)


def test_this_machine_can_be_looked_at_without_importing_torch() -> None:
    code = (
        "import sys; from xgr_runtime.config import surroundings, toolchain; "
        "print(len(toolchain.diagnose(surroundings.look_around())), 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = told.stdout.split()
    assert int(count) >= 2 and imported == "False"
