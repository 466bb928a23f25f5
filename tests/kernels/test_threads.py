"""Kernels and torch share OpenMP's threads: what one is told must not be undone by the other."""

import subprocess
import sys

SCRIPT = """
import numba, torch
torch.set_num_threads(1)
from xgr_kernels.beam_select.api import warm_up
from xgr_kernels.compiled import use_threads
use_threads(1)
warm_up()
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_one_thread_stays_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
