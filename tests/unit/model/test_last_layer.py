"""The last layer of a prompt, for its last token alone: the same hidden states and the same KV."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from transformers.models.qwen3 import modeling_qwen3

from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_runtime.model.backends.last_layer import prunes
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool

FAMILIES = ["qwen3", "qwen2", "llama", "phi3", "olmo2", "granite", "mixtral"]
PAGE = 4
TOLERANCE = 2e-5  # float32: one row's sums come in another order than those of many rows


def batch(vocab: int) -> list[Part]:
    """A whole prompt on scattered pages, one of a single token, and the rest of a prompt that was begun."""
    draw = np.random.default_rng(3)

    def tokens(count: int) -> np.ndarray:
        return draw.integers(3, vocab, count).astype(np.int32)

    return [
        Part(tokens(13), np.array([7, 2, 9, 4], np.int32)),
        Part(tokens(1), np.array([0], np.int32)),
        Part(tokens(6), np.array([10, 11, 12], np.int32), 5),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_tokens_and_all_kv_are_those_of_the_whole_layer(
    family: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder: Path = make_checkpoint(family, 2)
    model = load_backend("transformers", folder, "float32")
    assert model.prunes
    pools = [KvPool(model.identity, 16, PAGE) for _ in range(2)]
    told: list[list[int]] = [[], []]
    hidden = []
    for pool, pruned, layers in zip(pools, (True, False), told, strict=True):
        pool.k[:] = pool.v[:] = 0.5  # what the begun prompt's first tokens left
        model.prunes = pruned
        hidden.append(CpuPrefillEngine(model, pool).run(batch(model.identity.vocab), layers.append))
    np.testing.assert_allclose(hidden[0], hidden[1], rtol=0, atol=TOLERANCE)
    assert torch.equal(pools[0].k, pools[1].k) and torch.equal(pools[0].v, pools[1].v)
    assert told[0] == told[1] == [0, 1, 2]


def test_a_last_layer_that_needs_its_neighbours_runs_for_all(
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = modeling_qwen3.Qwen3MLP.forward

    def mixing(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return inner(self, x) + 0.1 * x.shape[1]  # type: ignore[arg-type]

    folder = make_checkpoint("qwen3", 2)
    whole = load_backend("transformers", folder, "float32", place=lambda _: None)  # in the library's layers
    monkeypatch.setattr(modeling_qwen3.Qwen3MLP, "forward", mixing)
    assert not prunes(whole)
