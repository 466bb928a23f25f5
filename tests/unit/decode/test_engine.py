"""The decode engine on a real model: a search that starts from KV alone equals one from a hidden state."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_catalogs import build_from_arrays

from decode_worker import trials
from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.phases import TaskPhase
from decode_worker.search import Question, Search
from decode_worker.trials import try_searches
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_kernels.trie import ScoreMode, Trie, no_filter
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.scheduling.cost_model import CostModel

PAGE, PAGES, ROWS, DEPTH = 16, 40, 64, 4
# float32 as everywhere: the last token alone or among its prompt moves a log-probability by about 1e-5.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[ModelBackend]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products: more threads cost more than they gain
    yield load_backend("transformers", checkpoint, "float32")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trie(backend: ModelBackend) -> Trie:
    """300 made-up items."""
    sids = np.random.default_rng(5).integers(3, min(30, backend.identity.vocab), (300, DEPTH))
    catalog = build_from_arrays([str(i) for i in range(300)], sids.astype(np.int32))
    return catalog.trie


class Requests:
    """Prompts in a pool with their hidden states, and the searches over them."""

    def __init__(self, backend: ModelBackend, trie: Trie, lengths: list[int]) -> None:
        draw = np.random.default_rng(11)
        pool = KvPool(backend.identity, PAGES, PAGE)
        self.engine = CpuDecodeEngine(backend, pool, DEPTH - 2, ROWS, "cpu")
        # Memory that nobody has written must not matter.
        self.engine.tail.k.fill_(torch.nan)
        self.engine.tail.v.fill_(torch.nan)
        self.prompts = [draw.integers(3, backend.identity.vocab, n).astype(np.int32) for n in lengths]
        pages = draw.permutation(PAGES).astype(np.int32)
        self.pages = [pages[10 * i :][: -(-n // PAGE)] for i, n in enumerate(lengths)]
        self.hidden = self.prefill(pool)
        self._trie = trie

    def prefill(self, pool: KvPool) -> np.ndarray:
        parts = [Part(prompt, pages) for prompt, pages in zip(self.prompts, self.pages, strict=True)]
        return CpuPrefillEngine(self.engine.model, pool).run(parts, lambda layer: None)

    def search(self, i: int, given: bool, mode: ScoreMode = "vocab") -> Search:
        prompt, width = self.prompts[i], 1 + 7 * i
        question = Question(len(prompt), int(prompt[-1]), width, width, mode, self._trie, no_filter())
        rows = np.arange(20 * i, 20 * i + width, dtype=np.int32)
        return Search(question, self.pages[i], rows, self.hidden[i] if given else None, DEPTH - 2)

    def finish(self, *searches: Search) -> None:
        while running := [s for s in searches if not s.over]:
            self.engine.step(running)


def assert_same(a: Search, b: Search) -> None:
    (leaves, scores), (other, expected) = a.answer(), b.answer()
    assert len(leaves) and leaves.tolist() == other.tolist()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["vocab", "legal"])
@pytest.mark.parametrize("length", [1, 2, PAGE, PAGE + 1, 61], ids="L={}".format)
def test_a_search_starts_from_kv_alone(
    backend: ModelBackend, trie: Trie, length: int, mode: ScoreMode
) -> None:
    requests = Requests(backend, trie, [7, length])
    given, alone = requests.search(1, True, mode), requests.search(1, False, mode)
    assert (given.forward_rows, alone.forward_rows) == (0, 1)
    requests.finish(given)
    requests.finish(alone)
    assert_same(alone, given)


def test_one_step_mixes_every_kind_of_start_with_running_beams(backend: ModelBackend, trie: Trie) -> None:
    requests = Requests(backend, trie, [33, 1, 50])
    expected = [requests.search(i, True) for i in range(3)]
    for search in expected:
        requests.finish(search)
    running, from_kv, from_hidden = (
        requests.search(0, False),
        requests.search(1, False),
        requests.search(2, True),
    )
    requests.engine.step([running])
    requests.engine.step([running])
    requests.engine.step([from_hidden, running, from_kv])
    assert [s.level for s in (running, from_kv, from_hidden)] == [3, 1, 1]
    requests.finish(running, from_kv, from_hidden)
    for search, other in zip((running, from_kv, from_hidden), expected, strict=True):
        assert_same(search, other)


def test_a_search_is_in_flight_while_a_launch_has_it(
    backend: ModelBackend, trie: Trie, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(backend, trie, [33])
    search, engine, seen = requests.search(0, True), requests.engine, list[TaskPhase]()
    for _ in range(DEPTH):
        engine.launch([search], lambda layer: seen.append(search.phase))
        seen.append(search.phase)
    assert {*seen[:-1]} == {TaskPhase.SEARCH, TaskPhase.IN_FLIGHT} and seen[-1] is TaskPhase.OVER
    assert engine.collect() == [search]

    def fail(*_: object) -> None:
        raise RuntimeError("a step that cannot be done")

    again = requests.search(0, True)
    monkeypatch.setattr(engine, "step", fail)
    with pytest.raises(RuntimeError):
        engine.launch([again])
    assert again.phase is TaskPhase.SEARCH, "it may be launched alone, or end at once"


def test_an_engine_of_few_rows_warms_up_within_them(backend: ModelBackend, trie: Trie) -> None:
    CpuDecodeEngine(backend, KvPool(backend.identity, 1, PAGE), DEPTH - 2, 2, "cpu").warm_up(trie)


def test_trials_tell_what_steps_take_and_leave_no_trace(backend: ModelBackend, trie: Trie) -> None:
    engine = CpuDecodeEngine(backend, KvPool(backend.identity, 80, PAGE), DEPTH - 2, 100, "cpu")
    tried = engine.try_searches(trie)
    assert tried and all(t.seconds > 0 and t.work.tokens <= 100 for t in tried)
    assert not engine.counters and not engine.busy and engine.costs.seen == 0
    model = CostModel()
    model.seed(tried)
    assert model.cost is not None


def test_trials_end_with_the_step_in_which_their_time_is_over(backend: ModelBackend, trie: Trie) -> None:
    engine = CpuDecodeEngine(backend, KvPool(backend.identity, 80, PAGE), DEPTH - 2, 100, "cpu")
    looks = iter(range(100))
    assert len(try_searches(engine, trie, lambda: next(looks) * trials.SECONDS)) <= 1
    none = CpuDecodeEngine(backend, KvPool(backend.identity, 1, PAGE), DEPTH - 2, 100, "cpu")
    assert none.try_searches(trie) == []
