"""The engine of a GPU, run on a CPU: cohorts of searches end as the CPU's engine ends them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from made_catalogs import build_from_arrays
from planned_attention import PlannedAttention
from read_backs import NoReadBack

from decode_worker.candidates import Portions
from decode_worker.engines.cohort_engine import CohortEngine
from decode_worker.engines.cohort_steps import COHORTS, CohortSteps
from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.phases import TaskPhase
from decode_worker.search import NOTHING_ABOVE, Question, Search, tail_tokens_of
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_kernels.beam_select import cuda_kernels as kernels
from xgr_kernels.beam_select.cuda import Tuning, launch_constants
from xgr_kernels.trie import LeafFilter, ScoreMode, Trie, leaf_filter, no_filter
from xgr_runtime.catalog import Catalog, CatalogView, Forced, Scoring
from xgr_runtime.catalog.edits import EditBatch, ItemRecord, edited
from xgr_runtime.catalog.trie import Levels
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.device.device import Event, HostDevice
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, ROWS, WIDTH, REQUESTS, DEPTH = 4, 40, 20, 8, 4, 4
LENGTHS = [7, 1, 20, 13]
# float32; kernels that add in another order move a log-probability by about 1e-6.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def backend(make_checkpoint: MakeCheckpoint) -> ModelBackend:
    return load_backend("transformers", make_checkpoint("qwen3", 2, num_hidden_layers=2), "float32")


@pytest.fixture(scope="module")
def view() -> CatalogView:
    sids = np.random.default_rng(5).integers(3, 12, (300, DEPTH))
    return CatalogView(build_from_arrays([str(i) for i in range(300)], sids.astype(np.int32)))


@pytest.fixture(scope="module")
def trie(view: CatalogView) -> Trie:
    return view.trie


@pytest.fixture(scope="module")
def prompts(backend: ModelBackend, trie: Trie) -> "Prompts":
    return Prompts(backend, trie)


class Prompts:
    """Prompts in a pool, their hidden states, and both engines over it."""

    def __init__(self, backend: ModelBackend, trie: Trie, device: HostDevice | None = None) -> None:
        draw = np.random.default_rng(11)
        pool = KvPool(backend.identity, PAGES, PAGE)
        self.trie = trie
        self.tail_tokens = tail_tokens_of(trie.depth)
        self.cpu = CpuDecodeEngine(backend, pool, self.tail_tokens, ROWS, "cpu")

        def attention(rows: int, requests: int) -> list[PlannedAttention]:
            return [PlannedAttention(rows, requests, PAGE, causal=False)]

        steps = CohortSteps(
            backend,
            pool,
            device or HostDevice(),
            trie,
            ROWS,
            WIDTH,
            attention,
            max_requests=REQUESTS,
            tuning=Tuning(block=128, tile=128, programs=2, maxima=32, capacity=128),
        )
        steps.buckets = (9, ROWS)
        self.gpu = CohortEngine(steps)
        self.gpu.warm_up(trie)
        self.tokens = [draw.integers(3, backend.identity.vocab, n).astype(np.int32) for n in LENGTHS]
        pages = draw.permutation(PAGES).astype(np.int32)
        self.pages = [pages[10 * i :][: -(-n // PAGE)] for i, n in enumerate(LENGTHS)]
        parts = [Part(prompt, pages) for prompt, pages in zip(self.tokens, self.pages, strict=True)]
        self.hidden = CpuPrefillEngine(backend, pool).run(parts, lambda layer: None)

    def search(
        self,
        i: int,
        width: int,
        given: bool = True,
        mode: ScoreMode = "vocab",
        filter: LeafFilter | None = None,
        levels: Levels | None = None,
        shared_bits: bool = False,
    ) -> Search:
        prompt, trie = self.tokens[i], levels.trie if levels else self.trie
        silent = levels.silent if levels else frozenset[int]()
        question = Question(
            len(prompt),
            int(prompt[-1]),
            width,
            width,
            mode,
            trie,
            filter or no_filter(),
            silent,
            shared_bits=shared_bits,
        )
        rows = np.arange(width, dtype=np.int32)
        return Search(question, self.pages[i], rows, self.hidden[i] if given else None, self.tail_tokens)

    def expected(self, *like: Search) -> list[Search]:
        """The same searches, ended by the CPU's engine, one after the other."""
        ended = []
        for search in like:
            again = Search(search.question, search.pages, search.rows, search.hidden, self.tail_tokens)
            while not again.over:
                self.cpu.step([again])
            ended.append(again)
        return ended

    def run(self, *searches: Search) -> None:
        self.gpu.launch(searches)
        assert set(self.gpu.collect()) == set(searches) and not self.gpu.busy


def assert_same(searches: list[Search], expected: list[Search]) -> None:
    for a, b in zip(searches, expected, strict=True):
        (leaves, scores), (others, wanted) = a.answer(), b.answer()
        assert leaves.tolist() == others.tolist() and a.invalid == b.invalid
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=TOLERANCE)
        if not a.invalid:
            np.testing.assert_allclose(a.ceiling, b.ceiling, rtol=1e-6, atol=TOLERANCE)


def test_a_cohort_ends_as_its_searches_alone(prompts: Prompts) -> None:
    widths, modes = [5, 1, 8, 6], ["vocab", "legal", "vocab", "legal"]
    searches = [
        prompts.search(i, width, mode=mode)  # type: ignore[arg-type]
        for i, (width, mode) in enumerate(zip(widths, modes, strict=True))
    ]
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))
    assert {search.ceiling > NOTHING_ABOVE for search in searches} == {True}


def test_cohorts_follow_each_other_without_a_trace(prompts: Prompts) -> None:
    for wide in (8, 3):
        searches = [prompts.search(0, wide), prompts.search(2, 2)]
        prompts.run(*searches)
        assert_same(searches, prompts.expected(*searches))


def test_prompts_without_a_hidden_state_run_their_last_token(prompts: Prompts) -> None:
    searches = [prompts.search(i, 4, given=i == 2) for i in range(4)]
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))


def test_filters_live_in_the_cohort(prompts: Prompts, trie: Trie) -> None:
    nothing: list[int] = []
    allow_deny = [
        (range(0, 280, 7), nothing),
        (None, [3, 4, 5, 200]),
        (range(40), [1, 2]),
        (nothing, nothing),
    ]
    filters = [
        leaf_filter(trie.leaves, None if allow is None else list(allow), deny) for allow, deny in allow_deny
    ]
    searches = [prompts.search(i, 5, filter=kept) for i, kept in enumerate(filters)]
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))
    assert len(searches[3].answer()[0]) == 0


def test_candidates_are_scored_in_portions(prompts: Prompts, trie: Trie) -> None:
    candidates = np.arange(0, trie.leaves, 13, dtype=np.int32)
    scored = Portions.of(prompts.search(2, WIDTH).question, candidates, WIDTH)
    searches = [
        prompts.search(2, len(piece), filter=leaf_filter(trie.leaves, piece)) for piece in scored.rest
    ]
    assert len(searches) == 3
    for search in searches:
        search.question = scored.next()
        prompts.run(search)
        scored.take(*search.answer())
    assert_same(searches, prompts.expected(*searches))
    assert sorted(scored.answer()[0].tolist()) == candidates.tolist()


def test_nan_fails_its_request_alone(prompts: Prompts) -> None:
    searches = [prompts.search(0, 4), prompts.search(1, 4)]
    assert searches[0].hidden is not None
    searches[0].hidden = np.full_like(searches[0].hidden, np.nan)
    prompts.run(*searches)
    assert searches[0].invalid and not searches[1].invalid
    assert_same(searches[1:], prompts.expected(searches[1]))
    again = prompts.search(1, 4)
    prompts.run(again)
    assert not again.invalid, "the flag of the cohort before is still set"


def test_candidates_that_overflow_are_searched_exactly(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = [prompts.search(0, 8), prompts.search(1, 5)]
    real = prompts.gpu.steps._selector.select

    def overflowing(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[arg-type]
        prompts.gpu.steps._selector.overflow[0] = 1

    monkeypatch.setattr(prompts.gpu.steps._selector, "select", overflowing)
    prompts.run(*searches)
    assert prompts.gpu.counters["selection_overflows"] == 1
    assert_same(searches, prompts.expected(*searches))


def selected_from(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits that selections are given from now on."""
    given: list[torch.Tensor] = []
    steps = prompts.gpu.steps
    real = steps._selector.select

    def watched(logits: torch.Tensor, *args: object, **kwargs: object) -> None:
        given.append(logits)
        real(logits, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(steps._selector, "select", watched)
    return given


def test_selection_reads_rows_of_sixteen_bytes(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary has 97 tokens: rows of so many logits would begin anywhere."""
    given = selected_from(prompts, monkeypatch)
    searches = [prompts.search(0, 8), prompts.search(1, 5, mode="legal")]
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))
    for logits in given:
        assert logits.stride() == (128, 1) and logits.shape[1] == 128 and logits.data_ptr() % 16 == 0
        assert (logits[:, 97:] == -torch.inf).all()


def test_scores_among_legal_tokens_read_a_part_of_the_head(
    prompts: Prompts, trie: Trie, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens 3 to 11 are legal, so 64 columns do, from token 3 on; the rows keep what lies behind them."""
    given = selected_from(prompts, monkeypatch)
    some = leaf_filter(trie.leaves, None, list(range(0, 200, 3)))
    searches = [
        prompts.search(0, 8, mode="legal"),
        prompts.search(1, 5, given=False, mode="legal"),
        prompts.search(2, 4, mode="legal", filter=some),
    ]
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))
    assert [logits.shape[1] for logits in given] == [64] * DEPTH
    again = prompts.search(0, 8)
    prompts.run(again)
    assert_same([again], prompts.expected(again))
    assert given[-1].shape[1] == 128 and (given[-1][:, 97:] == -torch.inf).all()


def test_a_launch_reads_nothing_back(prompts: Prompts) -> None:
    searches = [prompts.search(0, 8), prompts.search(1, 5)]
    with NoReadBack():
        prompts.gpu.launch(searches)
    assert len(prompts.gpu.collect()) == 2


class CountedAttention(PlannedAttention):
    """Notes its plans and its runs in one list, by its rows."""

    said: list[str]

    def plan(self, *args: Any) -> None:
        self.said.append(f"plan {self.rows}")
        super().plan(*args)

    def attend(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.said.append(f"run {self.rows}")
        return super().attend(*args)


@pytest.fixture
def counted(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What plans and layers of all buckets do from now on."""
    said: list[str] = []
    monkeypatch.setattr(CountedAttention, "said", said, raising=False)
    for graphs in prompts.gpu.steps._graphs.values():
        for forward in graphs.forwards:
            monkeypatch.setattr(forward.attention, "__class__", CountedAttention)
    return said


def test_a_launch_finds_its_plans_made(prompts: Prompts, counted: list[str]) -> None:
    searches = [prompts.search(0, 2), prompts.search(1, 2)]  # four rows at every level: one plan is enough
    prompts.gpu.prepare(searches)
    assert counted == ["plan 9"]
    prompts.gpu.prepare([*searches])
    assert counted == ["plan 9"], "they are prepared already"
    prompts.run(*searches)
    assert set(counted[1:]) == {"run 9"}, "a launch of what is prepared plans nothing"
    assert_same(searches, prompts.expected(*searches))


def test_a_second_plan_of_a_bucket_waits_for_the_first_forward(prompts: Prompts, counted: list[str]) -> None:
    searches = [prompts.search(0, 8), prompts.search(1, 8, given=False)]
    prompts.gpu.prepare(searches)
    assert counted == ["plan 9", "plan 20"], "two rows of prompts' last tokens, then levels of sixteen"
    prompts.run(*searches)
    assert_same(searches, prompts.expected(*searches))
    counted.clear()
    three = [prompts.search(i, 3, given=False) for i in range(3)]
    prompts.gpu.prepare(three)
    assert counted == ["plan 9"]
    prompts.run(*three)
    layers = prompts.gpu.steps.model.identity.layers
    assert counted == ["plan 9", *["run 9"] * layers, "plan 9", *["run 9"] * (3 * layers)]
    assert_same(three, prompts.expected(*three))


def test_what_was_prepared_for_others_is_not_launched(prompts: Prompts) -> None:
    first, second = prompts.search(0, 6), prompts.search(2, 5)
    for prepared in ([first, second], [second], [second, first]):
        prompts.gpu.prepare(prepared)
    prompts.run(first)
    assert_same([first], prompts.expected(first))
    assert second.phase is not TaskPhase.IN_FLIGHT


class SlowDevice(HostDevice):
    """What was queued counts as done once `passed` says so, event by event."""

    def __init__(self) -> None:
        self.passed: list[bool] = []

    def event(self) -> Event:
        self.passed.append(True)
        return _SlowEvent(self.passed, len(self.passed) - 1)


class _SlowEvent:
    def __init__(self, passed: list[bool], index: int) -> None:
        self._passed, self._index = passed, index

    def record(self) -> None:
        pass

    def done(self) -> bool:
        return self._passed[self._index]

    def wait(self) -> None:
        self._passed[self._index] = True


def test_two_cohorts_fly_and_end_in_order(backend: ModelBackend, trie: Trie) -> None:
    device = SlowDevice()
    prompts = Prompts(backend, trie, device)
    flown = [prompts.search(i, 6) for i in range(COHORTS)]
    events = []
    for search in flown:
        assert prompts.gpu.ready
        prompts.gpu.launch([search])
        events.append(len(device.passed) - 1)
        device.passed[-1] = False
    assert not prompts.gpu.ready and prompts.gpu.collect() == []
    assert {search.phase for search in flown} == {TaskPhase.IN_FLIGHT}
    device.passed[events[1]] = True
    assert prompts.gpu.collect() == [], "the second does not overtake the first"
    device.passed[events[0]] = True
    assert prompts.gpu.collect() == flown and prompts.gpu.ready
    assert {search.phase for search in flown} == {TaskPhase.OVER}
    assert_same(flown, prompts.expected(*flown))


class Versions:
    """The catalog of these tests, with a SID more and an item hidden, and another catalog that is pushed."""

    def __init__(self, view: CatalogView) -> None:
        self.first = view
        batch = EditBatch(put=(ItemRecord("more", (5, 5, 90, 6)),), hide=("7",))
        self.edited = edited(view, batch)
        sids = np.random.default_rng(6).integers(3, 80, (500, DEPTH)).astype(np.int32)
        self.pushed = CatalogView(build_from_arrays([f"new {i}" for i in range(500)], sids))

    @staticmethod
    def place(engine: CohortEngine, view: CatalogView) -> None:
        ready = [] if view.visible is None else [view.visible]
        assert any(engine.place(view, ready) for _ in range(3))


def on(view: CatalogView, mode: ScoreMode = "vocab") -> dict[str, Any]:
    """How a search reads a version."""
    return {
        "levels": view.levels(mode),
        "mode": mode,
        "filter": view.visible,
        "shared_bits": view.visible is not None,
    }


def test_versions_come_and_go_while_cohorts_fly(backend: ModelBackend, view: CatalogView) -> None:
    device, versions = SlowDevice(), Versions(view)
    prompts = Prompts(backend, versions.first.trie, device)
    engine, steps = prompts.gpu, prompts.gpu.steps
    flying = prompts.search(0, 6)
    engine.launch([flying])
    device.passed[-1] = False
    versions.place(engine, versions.edited)
    both = [prompts.search(1, 6), prompts.search(2, 5, **on(versions.edited))]
    engine.launch(both)
    device.passed[:] = [True] * len(device.passed)
    assert engine.collect() == [flying, *both]
    assert_same([flying, *both], prompts.expected(flying, *both))
    assert steps.bits.copied == 1, "when the version came, not for the search"

    engine.keep([versions.edited])
    versions.place(engine, versions.pushed)
    assert len(steps.catalogs.slots) == 2, "in the memory of the first"
    last = [
        prompts.search(3, 5, **on(versions.pushed, "legal")),
        prompts.search(0, 4, **on(versions.edited, "legal")),
    ]
    prompts.run(*last)
    assert_same(last, prompts.expected(*last))


class Told:
    """A kernel that says what it is given, and does nothing."""

    def __init__(self, name: str, said: list[object]) -> None:
        self._name, self._said = name, said

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        given = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in args]
        self._said.append((self._name, grid, given, constants))


def test_launches_are_given_the_same_before_and_after_a_swap(
    backend: ModelBackend, view: CatalogView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a graph that was captured with the first version reads the others as well."""
    versions, said = Versions(view), list[object]()
    for name in launch_constants(Tuning(), 1, 1):
        monkeypatch.setattr(kernels, name, Told(name, said))
    prompts = Prompts(backend, versions.first.trie)
    found, tables = [], []
    for version in (versions.first, versions.edited, versions.pushed):
        versions.place(prompts.gpu, version)
        said.clear()
        prompts.run(prompts.search(0, 6, **on(version)), prompts.search(1, 3, **on(version)))
        found.append([*said])
        tables.append(prompts.gpu.steps._selector.table.clone())
    assert len(found[0]) == DEPTH * 9 and found[0] == found[1] == found[2]
    assert not torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])


def test_preparing_writes_nothing_that_a_cohort_in_flight_reads(backend: ModelBackend, trie: Trie) -> None:
    device = SlowDevice()
    prompts = Prompts(backend, trie, device)
    steps, flying = prompts.gpu.steps, prompts.search(0, 6)
    prompts.gpu.launch([flying])
    device.passed[-1] = False
    (cohort,) = prompts.gpu._flying
    slots = [steps._slot(cohort, step) for step in cohort.steps]
    filters = [steps._filters.memory(cohort.place * REQUESTS + b) for b in range(REQUESTS)]
    read = [
        *(steps._inputs._staging[slot][0] for slot in slots),
        *(steps._first[cohort.place], steps._roots[cohort.place], *filters),
        *(steps._inputs._values, steps._now.packed, steps._hidden, steps._logits, steps._selector.table),
        *(steps._beams_out, steps._outcome, prompts.gpu.pool.k, prompts.gpu.pool.v),
    ]
    before = [x.clone() for x in read]
    few = leaf_filter(trie.leaves, list(range(40)), [1])
    waiting = [prompts.search(1, 5, filter=few), prompts.search(2, 4, given=False)]
    prompts.gpu.prepare(waiting)
    assert all(torch.equal(x, was) for x, was in zip(read, before, strict=True))
    assert prompts.gpu._prepared is not None and prompts.gpu._prepared.place != cohort.place
    prompts.gpu.launch(waiting)
    device.passed[:] = [True] * len(device.passed)
    assert prompts.gpu.collect() == [flying, *waiting]
    assert_same([flying, *waiting], prompts.expected(flying, *waiting))


def test_an_engine_of_few_beams_warms_up_within_them(backend: ModelBackend, trie: Trie) -> None:
    pool = KvPool(backend.identity, 2, PAGE)
    steps = CohortSteps(
        backend,
        pool,
        HostDevice(),
        trie,
        4,
        2,
        lambda rows, requests: [PlannedAttention(rows, requests, PAGE, causal=False)],
        max_requests=2,
        tuning=Tuning(block=128, tile=128, programs=2, maxima=32, capacity=128),
    )
    engine = CohortEngine(steps)
    launched: list[Search] = []
    launch = engine.launch

    def watched(searches: Sequence[Search]) -> None:
        launched.extend(searches)
        launch(searches)

    engine.launch = watched  # type: ignore[assignment, method-assign]
    engine.warm_up(trie)
    assert [search.question.width for search in launched] == [2, 2]


@pytest.fixture(scope="module")
def scored() -> Catalog:
    """With forced tokens: 90 before an SID, 91, 12 and 7 behind it."""
    sids = np.random.default_rng(5).integers(3, 12, (40, 2))
    head, tail = (Forced(90),), (Forced(91), Forced(12, False), Forced(7))
    return build_from_arrays([str(i) for i in range(40)], sids, scoring=Scoring(head, tail))


def test_forced_tokens_run_in_cohorts(backend: ModelBackend, scored: Catalog) -> None:
    """Scores that are relative need no tail, so their cohorts have fewer levels, one behind the other."""
    prompts = Prompts(backend, scored.scored_levels.trie)
    whole, short = scored.scored_levels, scored.relative_levels
    assert (whole.trie.depth, short.trie.depth) == (6, 3)
    filter = leaf_filter(scored.leaves, range(0, scored.leaves, 2), [4])
    searches = [
        prompts.search(0, 2, levels=whole),
        prompts.search(1, 2, given=False, filter=filter, levels=whole),
        prompts.search(2, 2, mode="legal", levels=short),
        prompts.search(3, 1, given=False, mode="legal", filter=filter, levels=short),
    ]
    for cohort in (searches[:2], searches[2:]):  # behind each other, both in flight
        assert prompts.gpu.choose(searches if cohort[0] is searches[0] else cohort) == cohort
        prompts.gpu.launch(cohort)
    assert set(prompts.gpu.collect()) == set(searches)
    assert_same(searches, prompts.expected(*searches))
    assert all(len(search.answer()[0]) for search in searches)
