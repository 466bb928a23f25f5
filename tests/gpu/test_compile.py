"""The library's kernels, compiled before any check needs them: how long a first start on a machine takes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from inputs import make_attention, make_prompts
from lab import Lab
from results import Figures
from test_attention import RARE

USUAL = ((128, torch.bfloat16),)
AT_ONCE = 2  # a compiler for each of a kernel's dozen files: more would take memory and no less time


def kinds(name: str, of: tuple[tuple[int, torch.dtype], ...], rare: bool = False) -> Any:
    """Head dims and dtypes."""
    return pytest.param(of, id=name, marks=[pytest.mark.rare] if rare else [])


@pytest.mark.timeout(900)
@pytest.mark.cases(
    "of", full=[kinds("usual", USUAL), kinds("rare", RARE, rare=True)], toy=[kinds("usual", USUAL)]
)
def test_compile(lab: Lab, figures: Figures, of: tuple[tuple[int, torch.dtype], ...]) -> None:
    """Two at a time; seconds of each until its first launch has ended."""

    def compiled(kind: tuple[int, torch.dtype, str]) -> float:
        dim, dtype, algorithm = kind
        started = time.perf_counter()
        prompts = make_prompts(lab, [17], 2, dim, 1, dtype)
        attention = make_attention(lab, prompts, 4, [3], False, algorithm)
        attention.attend(lab.randn(3, 4, dim, dtype=dtype), prompts.k[0], prompts.v[0], dim**-0.5)
        lab.settle()
        return time.perf_counter() - started

    wanted = [(dim, dtype, algorithm) for dim, dtype in of for algorithm in lab.algorithms]
    with ThreadPoolExecutor(AT_ONCE if lab.cuda else 1) as threads:
        for (dim, dtype, algorithm), seconds in zip(wanted, threads.map(compiled, wanted), strict=True):
            figures.time(f"{algorithm}, head size {dim}, {dtype}", seconds)
