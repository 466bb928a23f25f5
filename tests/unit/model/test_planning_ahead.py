"""Engines of a GPU that plan while an earlier launch has not even begun: each launch reads its own."""

from itertools import pairwise
from typing import Any

import flashinfer_stand_in
import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from flashinfer_stand_in import Stream
from late_device import LateDevice
from made_catalogs import build_from_arrays

from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.engines.cohort_steps import CohortSteps
from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import Question, Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from prefill_worker.engines.cuda import BucketEngine
from xgr_kernels.attention.paged import rules as paged_rules
from xgr_kernels.beam_select.cuda import Tuning
from xgr_kernels.trie import Trie, no_filter
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.device_attention import DeviceAttention
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, DEPTH, WIDTH, ROWS, REQUESTS = 4, 40, 3, 5, 12, 3
# float32, which the stand-in computes in float64: sums in another order, as among the CPU's kernels.
TOLERANCE = 5e-5


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    return flashinfer_stand_in.install(monkeypatch)


@pytest.fixture
def device(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> LateDevice:
    return LateDevice(stream, monkeypatch)


@pytest.fixture
def backend(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> ModelBackend:
    """float32, though FlashInfer does not serve it: so that differences are mistakes, not rounding."""
    monkeypatch.setattr(paged_rules, "DTYPES", (*paged_rules.DTYPES, torch.float32))
    folder = make_checkpoint("qwen3", 2, num_hidden_layers=1, head_dim=64)
    return load_backend("transformers", folder, "float32")


def parts_of(lengths: list[int], seed: int) -> list[Part]:
    draw = np.random.default_rng(seed)
    pages = draw.permutation(PAGES).astype(np.int32)
    ends = np.cumsum([0, *(-(-n // PAGE) for n in lengths)])
    return [
        Part(draw.integers(3, 97, n).astype(np.int32), pages[a:b])
        for n, (a, b) in zip(lengths, pairwise(ends), strict=True)
    ]


def test_a_batch_that_is_planned_before_the_one_before_has_begun(
    backend: ModelBackend, device: LateDevice
) -> None:
    pool, plain = KvPool(backend.identity, PAGES, PAGE), KvPool(backend.identity, PAGES, PAGE)
    attention = DeviceAttention(backend, pool, device, rows=64, requests=32, causal=True)
    engine = BucketEngine(backend, pool, device, 64, attention.one)
    engine.buckets = (16, 64)
    engine.warm_up()
    batches = [parts_of(lengths, seed) for seed, lengths in enumerate([[9, 5], [3, 11], [22, 1], [16]])]

    def plan(following: list[Part]) -> None:
        done, launched = device.stream.done, device.stream.launched
        engine.prepare(following)
        assert done == device.stream.done < launched, "it waited for the batch that runs"

    with device.stream.held():
        for batch, following in pairwise([*batches, batches[0]]):
            hidden = engine.run(batch, lambda layer: None, lambda: plan(following))  # noqa: B023
            wanted = CpuPrefillEngine(backend, plain).run(batch, lambda layer: None)
            np.testing.assert_allclose(hidden, wanted, rtol=0, atol=TOLERANCE)


@pytest.fixture
def trie() -> Trie:
    sids = np.random.default_rng(5).integers(3, 12, (90, DEPTH))
    return build_from_arrays([str(i) for i in range(90)], sids.astype(np.int32)).trie


def test_cohorts_that_are_planned_before_the_one_before_has_begun(
    backend: ModelBackend, device: LateDevice, trie: Trie
) -> None:
    pool = KvPool(backend.identity, PAGES, PAGE)
    attention = DeviceAttention(backend, pool, device, rows=ROWS, requests=REQUESTS, causal=False)
    tuning = Tuning(block=128, tile=128, programs=2, maxima=32, capacity=128)
    steps = CohortSteps(backend, pool, device, trie, ROWS, WIDTH, attention.each, REQUESTS, tuning)
    steps.buckets = (ROWS,)  # so that levels and cohorts replan the same bucket
    steps._select = device.later(steps._select)  # type: ignore[method-assign]
    steps._selector.begin = device.later(steps._selector.begin)  # type: ignore[method-assign]
    engine = CohortEngine(steps)
    with torch.inference_mode():
        steps.capture()
    prompts = parts_of([9, 22, 1], seed=4)
    hidden = CpuPrefillEngine(backend, pool).run(prompts, lambda layer: None)

    def search(b: int, width: int, given: bool = True) -> Search:
        part = prompts[b]
        question = Question(len(part.tokens), int(part.tokens[-1]), width, width, "vocab", trie, no_filter())
        rows = np.arange(width, dtype=np.int32)
        return Search(question, part.pages, rows, hidden[b] if given else None, DEPTH - 2)

    asked: list[list[tuple[Any, ...]]] = [[(0, 5), (1, 4)], [(1, 3, False)]]
    cohorts = [[search(*a) for a in some] for some in asked]
    alone = [search(*a) for some in asked for a in some]
    over: list[Search] = []
    with device.stream.held():
        for cohort in cohorts:
            done = device.stream.done
            engine.prepare(cohort)
            assert device.stream.done == done, "it waited for the device"
            engine.launch(cohort)
        while engine.busy:
            over += engine.collect()
    assert over == [one for cohort in cohorts for one in cohort]
    plain = CpuDecodeEngine(backend, pool, DEPTH - 2, ROWS, "cpu")
    for one, other in zip(over, alone, strict=True):
        while not other.over:
            plain.step([other])
        assert one.answer()[0].tolist() == other.answer()[0].tolist()
        np.testing.assert_allclose(one.answer()[1], other.answer()[1], rtol=0, atol=TOLERANCE)
