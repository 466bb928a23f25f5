"""Both engines of a GPU over FlashInfer's planned attention, with a stand-in for the library.

The engines' own tests plan attention in a simpler way; here plans, buckets and padding are the real ones.
"""

from itertools import pairwise
from typing import Any

import flashinfer_stand_in
import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from made_catalogs import build_from_arrays

from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.engines.cohort_steps import CohortSteps
from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import Question, Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from prefill_worker.engines.cuda import BucketEngine
from xgr_kernels.attention.paged import AttentionSizes
from xgr_kernels.attention.paged import cuda as paged
from xgr_kernels.attention.paged import rules as paged_rules
from xgr_kernels.attention.paged.rules import Cohort, Processor
from xgr_kernels.beam_select.cuda import Tuning
from xgr_kernels.trie import no_filter
from xgr_runtime.errors import ConfigError
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.device.device import HostDevice
from xgr_runtime.model.device_attention import DeviceAttention
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, DEPTH, WIDTH, ROWS = 4, 40, 3, 5, 12
LENGTHS = [9, 22, 1]
# float32, which the stand-in computes in float64: sums in another order, as among the CPU's kernels.
TOLERANCE = 5e-5


@pytest.fixture
def backend(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> ModelBackend:
    """float32, though FlashInfer does not serve it: so that differences are mistakes, not rounding."""
    flashinfer_stand_in.install(monkeypatch)
    monkeypatch.setattr(paged_rules, "DTYPES", (*paged_rules.DTYPES, torch.float32))
    folder = make_checkpoint("qwen3", 2, num_hidden_layers=2, head_dim=64)
    return load_backend("transformers", folder, "float32")


def parts(backend: ModelBackend) -> list[Part]:
    draw = np.random.default_rng(4)
    pages = draw.permutation(PAGES).astype(np.int32)
    ends = np.cumsum([0, *(-(-n // PAGE) for n in LENGTHS)])
    return [
        Part(draw.integers(3, 97, n).astype(np.int32), pages[a:b])
        for n, (a, b) in zip(LENGTHS, pairwise(ends), strict=True)
    ]


@pytest.mark.parametrize("kernel", ["library", "own"])
def test_prompts_in_whole_and_in_chunks(
    backend: ModelBackend, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "own":
        monkeypatch.setattr(paged_rules, "DTYPES", (torch.bfloat16, torch.float16))
    pool, plain = KvPool(backend.identity, PAGES, PAGE), KvPool(backend.identity, PAGES, PAGE)
    device = HostDevice()
    attention = DeviceAttention(backend, pool, device, rows=64, requests=32, causal=True)
    engine = BucketEngine(backend, pool, device, 64, attention.one)
    engine.buckets = (16, 64)
    engine.warm_up()
    pool.k.zero_()  # where it has run
    a, b, c = parts(backend)
    first, second = Part(b.tokens[:13], b.pages), Part(b.tokens[13:], b.pages, 13)
    for batch in ([a, first], [second, c], [a, b, c]):
        hidden = engine.run(batch, lambda layer: None)
        wanted = CpuPrefillEngine(backend, plain).run(batch, lambda layer: None)
        np.testing.assert_allclose(hidden, wanted, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(pool.k[:, :PAGES], plain.k[:, :PAGES], rtol=0, atol=TOLERANCE)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that attended, layer by layer, where FA3 is the best for a request that is alone."""

    def choose(sizes: AttentionSizes, cohort: Cohort, processor: Processor) -> str:
        return "fa3" if len(cohort) == 1 else "fa2"

    ran: list[str] = []
    wrapper = flashinfer_stand_in.BatchPrefillWithPagedKVCacheWrapper
    run = wrapper.run

    def watched(self: Any, *args: Any, **kwargs: Any) -> object:
        ran.append(self._backend)
        return run(self, *args, **kwargs)

    for module in (paged_rules, paged):
        monkeypatch.setattr(module, "choose_algorithm", choose)
    monkeypatch.setattr(wrapper, "run", watched)
    return ran


def test_beams_of_a_cohort(backend: ModelBackend, ran: list[str]) -> None:
    sids = np.random.default_rng(5).integers(3, 12, (90, DEPTH))
    catalog = build_from_arrays([str(i) for i in range(90)], sids.astype(np.int32))
    trie = catalog.trie
    pool, device = KvPool(backend.identity, PAGES, PAGE), HostDevice()
    attention = DeviceAttention(backend, pool, device, rows=ROWS, requests=4, causal=False)
    tuning = Tuning(block=128, tile=128, programs=2, maxima=32, capacity=128)
    steps = CohortSteps(backend, pool, device, trie, ROWS, WIDTH, attention.each, 4, tuning)
    steps.buckets = (5, ROWS)
    engine = CohortEngine(steps)
    engine.warm_up(trie)
    prompts = parts(backend)
    hidden = CpuPrefillEngine(backend, pool).run(prompts, lambda layer: None)

    def search(b: int, width: int, given: bool = True) -> Search:
        part = prompts[b]
        question = Question(len(part.tokens), int(part.tokens[-1]), width, width, "vocab", trie, no_filter())
        rows = np.arange(width, dtype=np.int32)
        return Search(question, part.pages, rows, hidden[b] if given else None, DEPTH - 2)

    plain = CpuDecodeEngine(backend, pool, DEPTH - 2, ROWS, "cpu")
    for asked in ([(0, 5), (1, 4), (2, 1)], [(1, 3)], [(0, 2, False), (2, 2)]):
        searches, alone = [search(*a) for a in asked], [search(*a) for a in asked]  # type: ignore[arg-type]
        ran.clear()
        engine.launch(searches)
        assert engine.collect() == searches
        assert set(ran) == {"fa3" if len(asked) == 1 else "fa2"}
        for one, other in zip(searches, alone, strict=True):
            while not other.over:
                plain.step([other])
            assert one.answer()[0].tolist() == other.answer()[0].tolist()
            np.testing.assert_allclose(one.answer()[1], other.answer()[1], rtol=0, atol=TOLERANCE)


def test_what_no_kernel_serves_is_refused_with_a_way_out(make_checkpoint: MakeCheckpoint) -> None:
    backend = load_backend("transformers", make_checkpoint("qwen3", 2, head_dim=160), "float32")
    with pytest.raises(ConfigError, match=r"head_dim is 160: .* 128 at most.*--device cpu"):
        DeviceAttention(
            backend, KvPool(backend.identity, PAGES, PAGE), HostDevice(), rows=8, requests=1, causal=True
        )
