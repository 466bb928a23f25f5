"""Fixtures of the tests that run models in their own process; a conftest imports them by name."""

from collections.abc import Iterator

import pytest
import torch
from checkpoints import MakeCheckpoint, checkpoint_maker

__all__ = ["make_checkpoint", "one_thread"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more threads, and threads that wait for a busy core cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """See `checkpoints.checkpoint_maker`."""
    return checkpoint_maker(tmp_path_factory.mktemp)
