"""A CPU's own way through the layers: the same numbers as the library's, and a way back to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from pairs import by_pairs
from torch import Tensor

from xgr_runtime.model.backends import fused
from xgr_runtime.model.backends.cpu import CpuBackend
from xgr_runtime.model.backends.fused import FAMILY
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import PrefillStage

# float32: the same sums in another order, over three layers whose logits are of several units
TOLERANCE = 2e-5


def library(folder: Path, dtype: str = "float32") -> ModelBackend:
    """In the library's layers, as where two workers share the weights."""
    return load_backend("transformers", folder, dtype, place=lambda _: None)


def run(model: ModelBackend, tokens: Tensor, keep: Tensor | None = None) -> tuple[Tensor, KvPool]:
    pool = KvPool(model.identity, 16, 4)
    last = None if keep is None else model.identity.layers - 1
    pages = np.arange(16, dtype=np.int32)
    stage = PrefillStage(pool, [(0, len(tokens), pages)], last_rows_of=last)
    return model.logits(model.forward(tokens, torch.arange(len(tokens)), stage, keep)), pool


@pytest.mark.in_turns("family")
@by_pairs({"family": list(FAMILY), "kv_heads": [1, 2, 4], "rows": [1, 2, 17, 61]})
def test_logits_and_kv_are_those_of_the_library(
    family: str, kv_heads: int, rows: int, make_checkpoint: MakeCheckpoint
) -> None:
    folder = make_checkpoint(family, kv_heads, **({"sliding_window": None} if family == "mistral" else {}))
    own, theirs = load_backend("transformers", folder, "float32"), library(folder)
    assert isinstance(own, CpuBackend) and not isinstance(theirs, CpuBackend)
    tokens = torch.randint(3, 97, (rows,), generator=torch.Generator().manual_seed(rows))
    logits, pool = run(own, tokens)
    want, their_pool = run(theirs, tokens)
    torch.testing.assert_close(logits, want, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(pool.k, their_pool.k, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(pool.v, their_pool.v, rtol=0, atol=TOLERANCE)
    last, _ = run(own, tokens, torch.tensor([rows - 1]))
    torch.testing.assert_close(last, want[-1:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("biased", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_biases_take_part(biased: dict[str, bool], make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama", 2, **biased)
    own = load_backend("transformers", folder, "float32")
    assert isinstance(own, CpuBackend)
    tokens = torch.arange(3, 40)
    torch.testing.assert_close(run(own, tokens)[0], run(library(folder), tokens)[0], rtol=0, atol=TOLERANCE)


def test_without_onednn(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    folder, tokens = make_checkpoint("qwen2", 2), torch.arange(3, 40)
    own = load_backend("transformers", folder, "float32")
    assert isinstance(own, CpuBackend)
    torch.testing.assert_close(run(own, tokens)[0], run(library(folder), tokens)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "dtype"), [("phi3", "float32"), ("granite", "float32"), ("qwen3", "bfloat16")]
)
def test_other_models_run_in_the_librarys_layers(
    family: str, dtype: str, make_checkpoint: MakeCheckpoint
) -> None:
    assert not isinstance(load_backend("transformers", make_checkpoint(family, 2), dtype), CpuBackend)


def test_layers_that_compute_something_else_run_in_the_library(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "gated_silu", lambda x, kernels: x.chunk(2, dim=-1)[1].contiguous())
    folder = make_checkpoint("qwen3", 2)
    assert not isinstance(load_backend("transformers", folder, "float32"), CpuBackend)
    assert "off by" in caplog.text


def test_layers_with_other_parts_run_in_the_library(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "NORM", "no_such_part")
    assert not isinstance(load_backend("transformers", make_checkpoint("qwen3", 2), "float32"), CpuBackend)
    assert "no_such_part" in caplog.text
