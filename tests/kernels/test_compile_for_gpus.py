"""Every Triton kernel compiles for the GPUs that people have, on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
import triton_gate

MOST_REGISTERS = 255  # of a thread; beyond that values spill to memory
SHARED_BYTES = 99 * 1024  # per block on the smallest GPU of these generations


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the gate said. Its cache is empty, so that every kernel really is compiled."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    gate = Path(triton_gate.__file__)
    done = subprocess.run(
        [sys.executable, gate], env=environ, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("architecture", triton_gate.ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("case", triton_gate.CASES, ids=lambda case: case.id)
def test_compiles(case: triton_gate.Case, architecture: int, lines: list[dict[str, Any]]) -> None:
    built = next(x for x in lines[:-1] if x["case"] == case.id and x["architecture"] == architecture)
    assert built["ptx"].startswith(f"sm_{architecture}")
    assert built["cubin_bytes"] > 0
    assert 0 < built["registers"] <= MOST_REGISTERS
    assert built["stack_bytes"] <= case.stack_bytes, "values spill to memory"
    assert built["shared_bytes"] <= SHARED_BYTES


@pytest.mark.parametrize("architecture", triton_gate.ARCHITECTURES, ids="sm_{}".format)
def test_rows_of_logits_are_read_sixteen_bytes_at_a_time(
    architecture: int, lines: list[dict[str, Any]]
) -> None:
    """Where they begin and end at multiples of 16, as `logit_rows` does; any others one by one."""
    built = [
        x for x in lines[:-1] if x["case"].startswith("row_statistics") and x["architecture"] == architecture
    ]
    wide = {x["case"].endswith("any row"): x["wide_loads"] for x in built}
    assert wide[False] > 0 and wide[True] == 0


def test_no_kernel_is_missing(lines: list[dict[str, Any]]) -> None:
    exist, compiled = set(lines[-1]["exist"]), set(lines[-1]["compiled"])
    assert "xgr_kernels.attention.tail.cuda:tail_attention_kernel" in exist
    assert exist <= compiled, f"add to tests/support/triton_gate.py: {sorted(exist - compiled)}"


def test_ids_are_unique() -> None:
    ids = [case.id for case in triton_gate.CASES]
    assert len(set(ids)) == len(ids)
