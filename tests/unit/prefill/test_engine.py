"""The prefill engine on a real model: a prompt computed in parts is the prompt computed at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.base import ModelBackend, Stage
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, LENGTH = 16, 24, 150
# float32: sums in another order move a hidden state, and the KV of later layers, by about 1e-5.
TOLERANCE = 5e-5


class Counted:
    """A model that notes the positions it is asked to compute."""

    def __init__(self, model: ModelBackend) -> None:
        self._model = model
        self.name, self.identity = model.name, model.identity
        self.q_heads, self.max_positions = model.q_heads, model.max_positions
        self.prunes = model.prunes
        self.positions: list[list[int]] = []

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        self.positions.append(positions.tolist())
        return self._model.forward(tokens, positions, stage, keep)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Iterator[ModelBackend]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: more threads cost more than they gain
    yield load_backend("transformers", checkpoint, "float32")
    torch.set_num_threads(before)


@pytest.fixture
def engine(loaded: ModelBackend) -> CpuPrefillEngine:
    return CpuPrefillEngine(Counted(loaded), KvPool(loaded.identity, PAGES, PAGE))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prompt(loaded: ModelBackend) -> np.ndarray:
    return np.random.default_rng(1).integers(3, loaded.identity.vocab, LENGTH).astype(np.int32)


CONSECUTIVE = np.arange(2, 12, dtype=np.int32)
SCATTERED = np.array([23, 1, 12, 13, 0, 14, 22, 15, 16, 17], np.int32)


def run(engine: CpuPrefillEngine, *parts: Part) -> np.ndarray:
    return engine.run(parts, lambda layer: None)


def kv(engine: CpuPrefillEngine, pages: PageIds) -> Tensor:
    """[layers, 2, LENGTH, Hkv, D]"""
    layers = range(engine.model.identity.layers)
    return torch.stack([torch.stack(engine.pool.read(layer, pages, 0, LENGTH)) for layer in layers])


@pytest.mark.parametrize("pages", [CONSECUTIVE, SCATTERED], ids=["consecutive", "scattered"])
@pytest.mark.parametrize("prefix", [1, 16, 67, 149], ids="prefix={}".format)
def test_a_prompt_that_extends_a_prefix_computes_only_its_new_tokens(
    engine: CpuPrefillEngine, prompt: np.ndarray, prefix: int, pages: PageIds
) -> None:
    want = run(engine, Part(prompt, pages))
    whole = kv(engine, pages).clone()
    engine.pool.k.fill_(0.0)
    engine.pool.v.fill_(0.0)
    run(engine, Part(prompt[:prefix], pages))
    engine.model.positions.clear()  # type: ignore[attr-defined]
    cached = kv(engine, pages)[:, :, :prefix].clone()

    got = run(engine, Part(prompt[prefix:], pages, prefix))

    assert engine.model.positions == [list(range(prefix, LENGTH))]  # type: ignore[attr-defined]
    assert torch.equal(kv(engine, pages)[:, :, :prefix], cached), "the prefix is read, never written"
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(kv(engine, pages), whole, rtol=0, atol=TOLERANCE)


def test_parts_of_several_prompts_share_a_forward(engine: CpuPrefillEngine, prompt: np.ndarray) -> None:
    other = prompt[::-1].copy()
    want = np.concatenate([run(engine, Part(prompt, CONSECUTIVE)), run(engine, Part(other, SCATTERED))])
    whole = kv(engine, CONSECUTIVE).clone()
    run(engine, Part(prompt[:100], CONSECUTIVE), Part(other[:10], SCATTERED))
    run(engine, Part(other[10:60], SCATTERED, 10), Part(prompt[100:120], CONSECUTIVE, 100))
    got = run(engine, Part(prompt[120:], CONSECUTIVE, 120), Part(other[60:], SCATTERED, 60))
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(kv(engine, CONSECUTIVE), whole, rtol=0, atol=TOLERANCE)
