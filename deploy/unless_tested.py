"""Runs a command unless what it checks is as it was when it last passed.

Usage: unless_tested.py [--always] NAME COMMAND

What a part checks is a list of paths and packages (`PARTS`). After a pass their fingerprint is written to
`deploy/tested.txt`, which is committed, so that a fresh clone knows it too. Where the line is missing, old or
wrong, the command runs: a line can save a run, but a wrong one makes nothing pass. One commit in `SPOT_CHECK`
runs the command whatever the line says, and then no other, so that a line that nobody earned does not last.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPOT_CHECK = 12


@dataclass(frozen=True)
class Part:
    """Paths below the root, and packages whose versions matter; folders count with all that is in them."""

    paths: tuple[str, ...]
    packages: tuple[str, ...]


PARTS = {
    "oldest-transformers": Part(
        (
            "deploy/test-oldest",
            "kernels",
            "pyproject.toml",
            "tests/kernels/test_names.py",
            "tests/support/beams.py",
            "tests/support/captures.py",
            "tests/support/checkpoints.py",
            "tests/support/flashinfer_stand_in.py",
            "tests/support/interpret_triton.py",
            "tests/support/late_device.py",
            "tests/support/launches.py",
            "tests/support/made_catalogs.py",
            "tests/support/meta_models.py",
            "tests/support/model_fixtures.py",
            "tests/support/pairs.py",
            "tests/support/planned_attention.py",
            "tests/support/read_backs.py",
            "tests/support/small_catalogs.py",
            "tests/unit/model",
            "xgr_runtime/cache",
            "xgr_runtime/checkpoint",
            "xgr_runtime/kv",
            "xgr_runtime/model",
        ),
        ("numpy", "safetensors", "torch"),
    ),
    "compile-gate": Part(
        ("kernels", "tests/kernels/test_compile_for_gpus.py", "tests/support/triton_gate.py"), ("triton",)
    ),
    "gpu-suite": Part(
        (
            "decode_worker/engines",
            "kernels",
            "prefill_worker/engines",
            "tests/gpu",
            "tests/unit/gpu_run",
            "xgr_runtime/model",
        ),
        ("numpy", "torch", "transformers", "triton"),
    ),
    "interpreted-kernels": Part(
        (
            "kernels",
            "tests/kernels/test_beam_select_cuda.py",
            "tests/kernels/test_races.py",
            "tests/kernels/test_row_ops_on_gpu.py",
            "tests/kernels/test_tail_attention_on_gpu.py",
            "tests/support/beam_batches.py",
            "tests/support/cuda_batch.py",
            "tests/support/flashinfer_stand_in.py",
            "tests/support/interpret_triton.py",
            "tests/support/pairs.py",
            "tests/support/race_check.py",
            "tests/support/triton_gate.py",
        ),
        ("numpy", "torch", "triton"),
    ),
    "interpreted-engines": Part(
        (
            "decode_worker/engines",
            "decode_worker/phases.py",
            "decode_worker/search.py",
            "kernels",
            "prefill_worker/engines",
            "tests/support/checkpoints.py",
            "tests/support/flashinfer_stand_in.py",
            "tests/support/interpret_triton.py",
            "tests/support/late_device.py",
            "tests/support/made_catalogs.py",
            "tests/support/planned_attention.py",
            "tests/support/read_backs.py",
            "tests/unit/decode/test_cohort_engine.py",
            "tests/unit/model/test_cuda_backend.py",
            "tests/unit/model/test_device_attention.py",
            "tests/unit/model/test_planning_ahead.py",
            "tests/unit/prefill/test_bucket_engine.py",
            "xgr_runtime/catalog/trie.py",
            "xgr_runtime/model",
        ),
        ("numpy", "torch", "transformers", "triton"),
    ),
    "flashinfer-planner": Part(
        (
            "deploy/test-planner",
            "kernels/xgr_kernels/attention",
            "pyproject.toml",
            "tests/kernels/test_flashinfer_plans.py",
            "tests/kernels/test_paged.py",
            "tests/support/flashinfer_planner.cpp",
            "tests/support/flashinfer_planner.py",
            "tests/support/flashinfer_stand_in.py",
        ),
        ("torch",),
    ),
}


def files_of(root: Path, part: Part) -> Iterator[Path]:
    """In a fixed order, without what Python leaves beside them. Ends the program where a path is gone."""
    for path in (root / name for name in part.paths):
        if not path.exists():
            sys.exit(f"error: {path} is gone: correct PARTS in deploy/unless_tested.py")
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (f for f in found if f.is_file() and "__pycache__" not in f.parts)


def fingerprint(root: Path, part: Part) -> str:
    """Of the names and bytes of the files, the packages' versions, Python's, and the processor's kind."""
    digest = hashlib.sha256(f"{platform.python_version()} {platform.machine()}\n".encode())
    for package in part.packages:
        digest.update(f"{package} {_version(package)}\n".encode())
    for file in files_of(root, part):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(root)} {content}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


class Tested:
    """The file of fingerprints: a line `NAME FINGERPRINT` for each part."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def lines(self) -> dict[str, str]:
        text = self.file.read_text() if self.file.exists() else ""
        return dict(line.split() for line in text.splitlines() if len(line.split()) == 2)

    def keep(self, name: str, found: str) -> None:
        lines = self.lines() | {name: found}
        self.file.write_text("".join(f"{part} {lines[part]}\n" for part in sorted(lines)))


def is_spot_check(commit: str, name: str) -> bool:
    """Whether this commit (hex, or empty where there is none) runs the part whatever is known of it.

    One part at most: several would make a commit's tests as long as if nothing had been kept.
    """
    turn = hashlib.sha256(commit.encode()).digest()[0] % SPOT_CHECK
    return not commit or turn == sorted(PARTS).index(name) % SPOT_CHECK


def head(root: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def run(root: Path, name: str, command: Sequence[str], always: bool = False) -> int:
    """The exit code of the command, or zero where it need not run; says which."""
    tested, found = Tested(root / "deploy" / "tested.txt"), fingerprint(root, PARTS[name])
    if tested.lines().get(name) != found:
        why = "what it checks has changed since it last passed"
    elif always:
        why = "all is asked for"
    elif is_spot_check(head(root), name):
        why = f"one commit in {SPOT_CHECK} runs it in any case"
    else:
        print(f"== {name}: left out, it passed with these very files and packages ({found[:12]})", flush=True)
        return 0
    print(f"== {name}: {why}", flush=True)
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code == 0 and tested.lines().get(name) != found:
        tested.keep(name, found)
        print(f"== {name}: passed; commit deploy/tested.txt, and it is left out until it changes", flush=True)
    return code


def main(argv: Sequence[str]) -> int:
    always = argv[:1] == ["--always"]
    name, *command = argv[1:] if always else argv
    return run(ROOT, name, command, always)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
