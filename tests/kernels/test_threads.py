"""Kernels and torch share OpenMP's threads: what one is told must not be undone by the other."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

ONE = """
import numba, torch
torch.set_num_threads(1)
from xgr_kernels.beam_select.api import warm_up
from xgr_kernels.cpu.compiled import use_threads
use_threads(1)
warm_up()
print(torch.get_num_threads(), numba.get_num_threads())
"""

SPREAD = """
import os, sys, torch
from xgr_kernels.cpu.compiled import spread_threads, use_threads
use_threads(int(sys.argv[1]))
torch.randn(500, 500) @ torch.randn(500, 500)  # by the threads of a library
told = spread_threads(backwards=len(sys.argv) > 2)
print(*sorted(os.sched_getaffinity(0)))
own = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(told, *sorted(cores[0] for cores in own if len(cores) == 1))
"""


def run(script: str, *args: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_one_thread_stays_one_thread() -> None:
    assert run(ONE) == ["1", "1"]


@pytest.fixture
def two_cores() -> Iterator[list[str]]:
    """Where this test's processes run; their numbers need not begin at 0."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core")
    chosen = sorted(before)[-2:]
    os.sched_setaffinity(0, chosen)
    yield [str(core) for core in chosen]
    os.sched_setaffinity(0, before)


def test_as_many_threads_as_cores_get_one_each(two_cores: list[str]) -> None:
    first, last = two_cores
    assert run(SPREAD, "2") == [first, "True", first, last]
    assert run(SPREAD, "2", "backwards") == [last, "True", first, last]


def test_fewer_threads_go_where_they_like(two_cores: list[str]) -> None:
    assert run(SPREAD, "1") == [*two_cores, "False"]
