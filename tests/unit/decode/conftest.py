"""Tiny checkpoints for engines that run here, and threads for work so small."""

from collections.abc import Iterator

import numba
import pytest
import torch
from model_fixtures import make_checkpoint

__all__ = ["make_checkpoint"]


@pytest.fixture
def one_thread_each() -> Iterator[None]:
    """Work so small gains nothing from more threads, which cost seconds where a core is busy."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
