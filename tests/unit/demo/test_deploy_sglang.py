"""Which environment the scripts take where SGLang is asked for or left out, with and without a GPU."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import fake_torch, fake_venv, program, run, stamp

without_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="the case is a machine without a GPU")


@pytest.fixture
def told(clone: Path) -> Path:
    """A clone with its environments, in which set-up, check, xgr and Python only tell how they are called."""
    program(clone / "deploy" / "setup", 'echo "setup $*"')
    program(clone / "deploy" / "check", "echo check")
    oldest = re.search(r'"transformers>=([^"]+)"', (clone / "pyproject.toml").read_text())
    assert oldest
    for name in ("test_one.py", "test_two.py"):
        program(clone / "tests" / "sglang" / name, "")
    for name in (".venv", ".venv-sglang", f".cache/venv-transformers-{oldest[1]}"):
        program(clone / name / "bin" / "xgr", f'echo "{name} $*"')
        program(clone / name / "bin" / "python", f'echo "{name} $*"')
        (clone / name / ".xgr-setup").touch()
    return clone


@pytest.fixture
def gpu(tools: Path) -> Path:
    """A PATH on which there is a GPU."""
    program(tools / "nvidia-smi", "exit 0")
    return tools


CHOICES = [
    ([], {}, ".venv", "auto"),
    (["--model-backend", "sglang"], {}, ".venv-sglang", "sglang"),
    (["--model-backend=sglang"], {}, ".venv-sglang", "sglang"),
    ([], {"XGR_MODEL_BACKEND": "sglang"}, ".venv-sglang", "sglang"),
    (["--model-backend", "transformers"], {"XGR_MODEL_BACKEND": "sglang"}, ".venv", "transformers"),
    (["--model-backend=sglang", "--model-backend", "auto"], {}, ".venv", "auto"),
    (["--port", "1", "--model-backend", "sglang", "--threads", "2"], {}, ".venv-sglang", "sglang"),
]
CHOICE_IDS = ["default", "flag", "flag=", "variable", "flag-before-variable", "last-flag", "among-others"]


@without_gpu
@pytest.mark.parametrize(("args", "environ", "venv", "backend"), CHOICES, ids=CHOICE_IDS)
def test_the_backend_chooses_the_environment(
    told: Path, args: list[str], environ: dict[str, str], venv: str, backend: str
) -> None:
    setup = "setup --sglang" if backend == "sglang" else "setup "
    variables: Any = environ  # none of them is the path
    serve = run(told / "deploy" / "serve", *args, **variables)
    assert serve.stdout.splitlines() == [setup, " ".join([venv, "serve", *args])]
    demo = run(told / "deploy" / "demo", *args, **variables)  # with one cache for both environments
    words = [venv, "demo", "--cache", f"{told}/.cache/demo", "--model-backend", backend, *args]
    assert demo.stdout.splitlines() == [setup, " ".join(words)]


def test_with_a_gpu_there_is_one_environment(told: Path, gpu: Path) -> None:
    done = run(told / "deploy" / "serve", "--model-backend=sglang", path=gpu)
    assert done.stdout.splitlines() == ["setup --sglang", ".venv serve --model-backend=sglang"]


UNITS = ["tests/unit", "tests/kernels"]
SECOND_LANE = ["tests/faults", "tests/scaling"]
SECOND_LANE += [f"tests/processes/test_{name}.py" for name in ("captured_engines", "hosts", "page")]
GATE = "tests/kernels/test_compile_for_gpus.py"
TOYS = "tests/unit/gpu_run"
KERNELS = [
    f"tests/kernels/test_{name}.py"
    for name in ("beam_select_cuda", "races", "row_ops_on_gpu", "tail_attention_on_gpu")
]
ENGINES = [
    "tests/unit/decode/test_cohort_engine.py",
    *(f"tests/unit/model/test_{name}.py" for name in ("device_attention", "planning_ahead", "cuda_backend")),
    "tests/unit/prefill/test_bucket_engine.py",
]
PYTEST = "-m pytest --durations=10 --durations-min=5"
SGLANG = [f".venv-sglang {PYTEST} tests/sglang/{name}" for name in ("test_one.py", "test_two.py")]


def with_ours(*, long: bool = False) -> list[str]:
    """How the tests without SGLang are run when nothing is asked for."""
    always, more = ("--always ", "--long ") if long else ("", "")
    unless = f".venv deploy/unless_tested.py {always}"
    two = "--numprocesses=auto --dist=loadfile --max-worker-restart=0"
    interpreted = f"env OMP_NUM_THREADS=1 .venv/bin/python -m pytest --long {two}"
    left_out = " ".join(f"--ignore={name}" for name in (GATE, TOYS, *KERNELS, *ENGINES))
    return [
        *(f".venv -m xgr_runtime.model.ready_kernels --dtype={dtype}" for dtype in ("float32", "bfloat16")),
        f".venv {PYTEST} {two} --no-loadscope-reorder {more}{' '.join(UNITS)} {left_out}",
        f"{unless}interpreted-kernels {interpreted} {' '.join(KERNELS)}",
        f"{unless}interpreted-engines {interpreted} {' '.join(ENGINES)}",
        f"{unless}compile-gate .venv/bin/python -m pytest --long {GATE}",
        f"{unless}gpu-suite .venv/bin/python -m pytest --long {two} {TOYS}",
        f"{unless}flashinfer-planner deploy/test-planner",
        f"{unless}oldest-transformers deploy/test-oldest",
        f".venv {PYTEST} {more}tests {' '.join(f'--ignore={folder}' for folder in (*UNITS, *SECOND_LANE))}",
        f".venv {PYTEST} {more}{' '.join(SECOND_LANE)}",
    ]


@without_gpu
@pytest.mark.parametrize(
    ("args", "setups", "runs"),
    [
        ([], ["", *["--sglang"] * 2], [*with_ours(), *SGLANG]),
        (["--long", "--without-sglang"], ["--without-sglang", ""], with_ours(long=True)),
        (["--without-sglang"], ["--without-sglang", ""], with_ours()),
        (["tests/unit", "-x"], [], [f".venv {PYTEST} tests/unit -x"]),
        (["--long", "tests/faults"], [], [f".venv {PYTEST} --long tests/faults"]),
        (["tests/sglang", "-x"], ["--sglang"], [f".venv-sglang {PYTEST} tests/sglang -x"]),
    ],
    ids=["all", "long-without-sglang", "without-sglang", "some", "some-long", "some-with-sglang"],
)
def test_the_tests_with_sglang_run_in_its_environment(
    told: Path, args: list[str], setups: list[str], runs: list[str]
) -> None:
    done = run(told / "deploy" / "test", *args)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace(f"{told}/", "").splitlines()
    assert [line for line in lines if line.startswith("setup")] == [f"setup {flag}" for flag in setups]
    assert lines.count("check") == 1
    called = [line for line in lines if line.startswith(".venv")]
    ours = len(runs) - len(SGLANG) if args == [] else len(runs)
    assert called[:ours] == runs[:ours]
    assert sorted(called[ours:]) == runs[ours:], "those with SGLang run two at a time"
    assert ("== the tests with SGLang are left out (--without-sglang)" in lines) == (
        "--without-sglang" in args
    )


@without_gpu
@pytest.mark.parametrize("fails", ["check", "compiling"])
def test_nothing_is_tested_where_a_check_fails_or_no_kernel_compiles(told: Path, fails: str) -> None:
    broken = told / ("deploy/check" if fails == "check" else ".venv/bin/python")
    program(broken, f'echo "{fails} $*"; exit 3')
    done = run(told / "deploy" / "test", "--without-sglang")
    assert done.returncode == 3
    assert "pytest" not in done.stdout


@without_gpu
def test_a_file_that_dies_with_sglang_costs_no_other_and_shows_its_core(told: Path) -> None:
    """What it was doing is in the log, and the rest was tested as well."""
    program(told / "bin" / "gdb", 'echo "gdb $*"')
    python = told / ".venv-sglang" / "bin" / "python"
    dies = f'case "$*" in *test_one*) touch {told}/core.1; kill -SEGV $$ ;; esac'
    program(python, f'echo ".venv-sglang $*"; {dies}')
    done = run(told / "deploy" / "test", PATH=f"{told}/bin:{os.environ['PATH']}")
    assert done.returncode == 1
    called = [line for line in done.stdout.splitlines() if line.startswith(".venv-sglang")]
    assert sorted(called) == SGLANG
    assert f"thread apply all backtrace {python} {told}/core.1" in done.stdout
    assert "failed with SGLang: tests/sglang/test_one.py" in done.stderr


@without_gpu
def test_set_up_of_sglang_is_done_until_the_lock_changes(clone: Path, tmp_path: Path) -> None:
    venv = fake_venv(tmp_path / "venv", fake_torch(tmp_path / "site", None))
    lock = clone / "deploy" / "sglang-cpu.lock"
    (venv / ".xgr-setup").write_text(stamp(clone, "sglang-cpu", lock))
    done = run(clone / "deploy" / "setup", "--sglang", XGR_SGLANG_VENV=str(venv))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with lock.open("a") as file:
        file.write("another==1.0\n")
    done = run(clone / "deploy" / "setup", "--sglang", XGR_SGLANG_VENV=str(venv))
    assert done.returncode == 1
    assert f"this command failed: pip install --no-deps --requirement {lock}" in done.stderr
    assert "index reachable" in done.stderr


@without_gpu
def test_a_python_that_sglang_has_no_wheel_for_is_named(clone: Path, tools: Path) -> None:
    program(tools / "python3", 'case "$2" in *"< (3, 14)"*) exit 1;; *) echo 3.14.0;; esac')
    done = run(clone / "deploy" / "setup", "--sglang", path=tools)
    assert done.returncode == 1
    assert "Python 3.11 to 3.13 is needed; python3 here is 3.14.0" in done.stderr


@pytest.mark.parametrize(
    ("found", "flags", "installs"),
    [
        (None, [], "[dev,cuda]"),
        (None, ["--sglang"], "[dev,cuda]"),
        (None, ["--without-sglang"], "[dev]"),
        ("dev,cuda", [], None),
        ("dev,cuda", ["--sglang"], None),
        ("dev", [], None),  # whoever left it out once is not asked again
        ("dev", ["--without-sglang"], None),
        ("dev", ["--sglang"], "[dev,cuda]"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_with_a_gpu_sglang_is_an_extra(
    clone: Path, gpu: Path, tmp_path: Path, found: str | None, flags: list[str], installs: str | None
) -> None:
    venv = fake_venv(tmp_path / "venv", fake_torch(tmp_path / "site", "13.0"))
    if found:
        (venv / ".xgr-setup").write_text(stamp(clone, found))
    done = run(clone / "deploy" / "setup", *flags, path=gpu, XGR_VENV=str(venv))
    assert ("SGLang is left out" in done.stdout) == (flags == ["--without-sglang"])
    if installs is None:
        assert done.returncode == 0
        assert "Setting up" not in done.stdout
    else:
        assert done.returncode == 1  # that pip installs nothing
        assert f"this command failed: pip install --editable {clone}{installs}\n" in done.stderr
