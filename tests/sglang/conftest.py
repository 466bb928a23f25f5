"""Tests that need SGLang itself; they belong to an environment that has it."""

import os
from collections.abc import Iterator

import pytest

from xgr_runtime.model.sglang import shims, versions

if versions.installed_version() is None:
    raise pytest.UsageError(
        "tests/sglang needs SGLang, which is not installed here: ./deploy/test runs it where it is"
    )
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this release serves on CPUs, and so do its tests
shims.install()  # before any module of this folder imports transformers

import torch  # noqa: E402
from checkpoints import MakeCheckpoint, checkpoint_maker  # noqa: E402


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
