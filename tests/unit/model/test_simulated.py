"""The backend that computes nothing: its answers are legal and repeat, its time is that of the roofline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_catalogs import example

from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import Question, Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_kernels.trie import no_filter
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.simulated import SimulatedBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool

# A forward takes its launches alone: 3 layers of the played model.
DEVICE = {"name": "quick", "flops": 1e18, "bytes_per_second": 1e18, "launch_seconds": 0.01, "of_peak": 1.0}
SIZES = {"layers": 3, "hidden": 8, "intermediate": 8, "q_heads": 1, "kv_heads": 1, "head_dim": 8, "vocab": 9}


@pytest.fixture
def simulated(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., SimulatedBackend]:
    def make(**said: Any) -> SimulatedBackend:
        source = make_checkpoint("qwen3", 2)
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "simulation.json").write_text(json.dumps({"device": DEVICE, "model": SIZES, **said}))
        backend = load_backend("simulated", tmp_path, "float32")
        assert isinstance(backend, SimulatedBackend)
        return backend

    return make


def prefilled(backend: SimulatedBackend, pool: KvPool, told: list[int]) -> np.ndarray:
    parts = [Part(np.arange(5, dtype=np.int32), np.arange(1, dtype=np.int32))]
    return CpuPrefillEngine(backend, pool).run(parts, told.append)


def test_prompts_and_searches_end_as_on_a_device(simulated: Callable[..., SimulatedBackend]) -> None:
    backend, trie = simulated(slower=2), example().trie
    pool, told = KvPool(backend.identity, pages=2, page_size=16), list[int]()
    began = time.monotonic()
    hidden = prefilled(backend, pool, told)
    assert time.monotonic() - began >= 2 * 3 * 0.01 and told == [0, 1, 2]
    engine = CpuDecodeEngine(backend, pool, tail_tokens=1, max_rows=20, kernels="cpu")
    question = Question(5, 4, 10, 10, "vocab", trie, no_filter())
    answers = []
    for _ in range(2):
        pages, rows = np.arange(1, dtype=np.int32), np.arange(question.most_beams, dtype=np.int32)
        search = Search(question, pages, rows, hidden[0], 1)
        while not search.over:
            engine.launch([search])
        leaves, scores = search.answer()
        assert len(set(leaves.tolist())) == 10 and (np.diff(scores) <= 0).all() and leaves.max() < trie.leaves
        answers.append((leaves.tolist(), scores.tolist()))
    assert answers[0] == answers[1]


def test_at_no_cost_everything_passes_at_once(simulated: Callable[..., SimulatedBackend]) -> None:
    backend, told = simulated(slower=0), list[int]()
    prefilled(backend, KvPool(backend.identity, pages=2, page_size=16), told)
    assert told == [0, 1, 2] and torch.isfinite(backend.logits(torch.zeros(1, 48))).all()


def test_nobody_gets_it_without_asking(simulated: Callable[..., SimulatedBackend], tmp_path: Path) -> None:
    simulated()
    assert load_backend("auto", tmp_path, "float32").name != "simulated"
    with pytest.raises(ModelError, match="use --device cpu"):
        load_backend("simulated", tmp_path, "float32", device="cuda")
