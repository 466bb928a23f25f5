"""Tests that need SGLang itself; they belong to an environment that has it."""

import os

import pytest

from xgr_runtime.model.backends import shims
from xgr_runtime.model.sglang import versions

if versions.installed_version() is None:
    raise pytest.UsageError(
        "tests/sglang needs SGLang, which is not installed here: ./deploy/test runs it where it is"
    )
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this release serves on CPUs, and so do its tests
shims.install()  # before any module of this folder imports transformers

from model_fixtures import make_checkpoint, one_thread  # noqa: E402

__all__ = ["make_checkpoint", "one_thread"]
