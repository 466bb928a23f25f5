"""Beam selection in Triton against the definition: on a GPU where there is one, else interpreted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from beam_batches import (
    Ask,
    assert_equal,
    build_batch,
    build_filter,
    build_trie,
    random_filter,
    random_logits,
    random_trie,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from xgr_kernels.beam_select import BeamBatch, Selection, reference
from xgr_kernels.trie import Normaliser, Trie, no_filter

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
import cuda_batch

from xgr_kernels.beam_select.cuda import (
    MOST_ROWS,
    BeamState,
    DeviceFilters,
    DeviceTrie,
    Selector,
    Tuning,
    logit_rows,
    request_row,
    splits_for,
)

# An interpreter warns where a GPU overflows and takes logarithms of 0 in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Exponentials are float32, good to some 1e-7 of their sum; a score near 32 has steps of 2e-6, rounded twice.
TOLERANCE = 8e-6
FILTERS = ["none", "bits", "deny", "bits+deny", "all denied"]
MODES: list[Normaliser] = ["vocab", "legal"]
# Small sizes, so that small batches have several programs, tiles and blocks, and storage that overflows.
SMALL = Tuning(block=256, tile=128, programs=2, maxima=64, capacity=128)
SPLITS = 3


def check(logits: torch.Tensor, batch: BeamBatch, tuning: Tuning = SMALL) -> cuda_batch.Launched:
    """The answer is that of a full sort of the same float32 scores, and nearly that of float64."""
    done = cuda_batch.launch(logits.to(DEVICE), batch, tuning, SPLITS)
    got = cuda_batch.unpack(done, batch)
    assert_equal(got, reference.select(logits, batch, lse=done.selector.lse.cpu().numpy()))
    exact = reference.select(logits, batch)
    np.testing.assert_array_equal(got.offsets, exact.offsets)
    np.testing.assert_array_equal(got.invalid, exact.invalid)
    np.testing.assert_allclose(got.score, exact.score, rtol=0, atol=TOLERANCE)
    check_thresholds(done, got)
    return done


def check_thresholds(done: cuda_batch.Launched, got: Selection) -> None:
    """No threshold is above the last key that was chosen."""
    for b, threshold in enumerate(done.selector._threshold.tolist()):
        if got.of(b).start < got.of(b).stop:
            assert threshold <= key_of(got, got.of(b).stop - 1)


def key_of(got: Selection, i: int) -> int:
    """The key of result i, as Python counts."""
    bits = int(got.score[i].view(np.int32))
    image = bits if bits >= 0 else bits ^ 0x7FFFFFFF
    return (image << 32) | (~(int(got.parent[i]) << 20 | int(got.token[i])) & 0xFFFFFFFF)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FILTERS)
def test_matches_reference(kind: str, mode: Normaliser) -> None:
    """R=7-V=1027-W=33, both levels of a skewed trie."""
    rng = np.random.default_rng(7)
    trie = random_trie(rng, 700, 2, 1027, skew=2.0)
    asks = [Ask(trie, level, 33, 7, random_filter(rng, trie.leaves, kind), mode) for level in (0, 1)]
    batch = build_batch(rng, asks)
    done = check(random_logits(rng, batch, 1027), batch)
    assert (int(done.selector.count.sum()) == 0) == (kind == "all denied")


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_are_longer_than_the_vocabulary(mode: Normaliser) -> None:
    """R=7-V=1003: rows of 1,024 columns, the part of them that is the vocabulary, and rows of 1,003."""
    rng = np.random.default_rng(17)
    batch = build_batch(rng, [Ask(random_trie(rng, 500, 2, 1003), 1, 20, 7, mode=mode)])
    logits = random_logits(rng, batch, 1003)
    rows = logit_rows(len(logits), 1003, DEVICE)
    rows[:, :1003] = logits
    assert rows.stride(0) == 1024 and rows.data_ptr() % 16 == 0
    want = check(logits, batch).next.packed
    for x in (rows, rows[:, :1003]):
        torch.testing.assert_close(cuda_batch.launch(x, batch, SMALL, SPLITS).next.packed, want)


@pytest.mark.parametrize(
    ("R", "V", "W", "depth"),
    [(1, 3, 1, 1), (1, 2049, 1, 1), (1, 515, 63, 1), (33, 515, 1, 2), (33, 515, 63, 3), (3, 64, 63, 4)],
    ids=lambda n: str(n),
)
def test_odd_shapes(R: int, V: int, W: int, depth: int) -> None:
    """The last is underfull: 3 rows have fewer than 63 children."""
    rng = np.random.default_rng([R, V, W, depth])
    trie = random_trie(rng, 900, depth, V, skew=1.0)
    batch = build_batch(rng, [Ask(trie, depth - 1, W, R)])
    check(random_logits(rng, batch, V), batch)


def test_sizes_of_production() -> None:
    """As the engine launches it: the tuning and splits of the size at hand."""
    rng = np.random.default_rng(1)
    trie = random_trie(rng, 4000, 2, 2500)
    batch = build_batch(rng, [Ask(trie, 0, 40), Ask(trie, 1, 40, 20)])
    logits = random_logits(rng, batch, 2500)
    got = cuda_batch.select(logits.to(DEVICE), batch)
    want = reference.select(logits, batch)
    for name in ("offsets", "invalid", "overflow", "parent", "token", "lo", "hi", "elements_total"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    np.testing.assert_allclose(got.score, want.score, rtol=0, atol=TOLERANCE)


def test_one_node_has_most_children() -> None:
    rng = np.random.default_rng(6)
    sids = np.concatenate([np.stack([np.full(1500, 3), np.arange(1500)], 1), np.argwhere(np.ones((40, 2)))])
    batch = build_batch(rng, [Ask(build_trie(sids), 1, 50)])
    check(random_logits(rng, batch, 1500), batch)


@pytest.mark.parametrize("step", [0.5, 1000.0])
def test_ties_are_ordered_exactly(step: float) -> None:
    """Coarse logits: only parent and token tell many candidates apart."""
    rng = np.random.default_rng(5)
    trie = random_trie(rng, 600, 2, 127)
    batch = build_batch(rng, [Ask(trie, 1, W, 20) for W in (1, 20, 63)])
    batch.scores[::2] = -0.0
    batch.scores[1::2] = 0.0
    check(random_logits(rng, batch, 127, step), batch)


@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # to shrink takes too long here
@given(st.data())
def test_equals_full_sort(data: st.DataObject) -> None:
    """Any mix of requests, tries, levels, filters, modes, ties and -inf."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    V = data.draw(st.sampled_from([3, 64, 257]), "V")
    asks = []
    for _ in range(data.draw(st.integers(1, 3), "requests")):
        depth = data.draw(st.integers(1, 4), "depth")
        leaves, skew = data.draw(st.integers(1, 600), "leaves"), data.draw(st.sampled_from([0, 3]), "skew")
        trie = random_trie(rng, leaves, depth, V, skew)
        kind = data.draw(st.sampled_from(FILTERS), "filter")
        level = data.draw(st.integers(0, depth - 1), "level")
        width = data.draw(st.sampled_from([1, 2, 7, 50]), "width")
        rows = data.draw(st.sampled_from([0, 1, 9]), "rows")
        mode = data.draw(st.sampled_from(MODES), "mode")
        asks.append(Ask(trie, level, width, rows, random_filter(rng, trie.leaves, kind), mode))
    batch = build_batch(rng, asks)
    logits = random_logits(rng, batch, V, data.draw(st.sampled_from([0.0, 0.5, 3.0]), "step"))
    logits[torch.rand(logits.shape) < data.draw(st.sampled_from([0.0, 0.3]), "share of -inf")] = -np.inf
    check(logits, batch)


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("mode", MODES)
def test_bad_logit_fails_its_request_alone(poison: float, mode: Normaliser) -> None:
    """First, in the middle, last; also after a whole block of -inf, and twice in one lane."""
    rng = np.random.default_rng(3)
    trie = random_trie(rng, 200, 2, 1027)
    batch = build_batch(rng, [Ask(trie, 1, 9, 3, mode=mode) for _ in range(6)])
    logits = random_logits(rng, batch, 1027)
    logits[4, 0] = logits[7, 600] = logits[10, 1026] = poison
    logits[12] = -np.inf
    logits[12, 1000] = logits[15, 5] = logits[15, 5 + SMALL.block] = poison
    done = check(logits, batch)
    assert done.selector.invalid.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("score", [np.nan, np.inf], ids=["nan", "inf"])
def test_bad_score_fails_its_request_alone(score: float) -> None:
    rng = np.random.default_rng(3)
    batch = build_batch(rng, [Ask(random_trie(rng, 200, 2, 64), 1, 9, 3) for _ in range(2)])
    batch.scores[4] = score
    assert check(random_logits(rng, batch, 64), batch).selector.invalid.tolist() == [0, 1]


def test_scores_of_minus_infinity_are_candidates() -> None:
    rng = np.random.default_rng(3)
    batch = build_batch(rng, [Ask(random_trie(rng, 200, 2, 64), 1, 60, 5)])
    batch.scores[:3] = -np.inf
    done = check(random_logits(rng, batch, 64), batch)
    assert np.isneginf(cuda_batch.unpack(done, batch).score).any()


@pytest.mark.parametrize("mode", MODES)
def test_all_minus_infinity_is_invalid_only_with_live_children(mode: Normaliser) -> None:
    trie = build_trie(np.arange(9).reshape(-1, 1))
    dead = build_filter(np.zeros(9, bool))
    asks = [Ask(trie, 0, 4, mode=mode), Ask(trie, 0, 4, leaves=dead, mode=mode)]
    batch = build_batch(np.random.default_rng(0), asks)
    done = check(torch.full((2, 9), -np.inf), batch)
    assert done.selector.invalid.tolist() == [1, 0]


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_log_sum_exp_matches_float64(spread: float) -> None:
    """R=3-V=5003, in one share, in several, and in more than there are blocks."""
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, spread, (3, 5003)).astype(np.float32))
    batch = build_batch(np.random.default_rng(0), [Ask(build_trie(np.arange(3).reshape(-1, 1)), 0, 1)] * 3)
    exact = logits.double().logsumexp(-1).numpy()
    for splits in (1, 7, 64):
        done = cuda_batch.launch(logits.to(DEVICE), batch, SMALL, splits)
        # two steps of float32 at the size of the result
        np.testing.assert_allclose(done.selector.lse.cpu().numpy(), exact, rtol=2.4e-7, atol=0)


@pytest.mark.parametrize("W", [1, 2, 37, 100])
def test_threshold_is_the_last_score_where_every_block_holds_one(W: int) -> None:
    """100 children in 256 blocks: the threshold is the W-th best score, and just W are stored."""
    trie = build_trie(np.arange(100).reshape(-1, 1))
    batch = build_batch(np.random.default_rng(0), [Ask(trie, 0, W)])
    logits = torch.randperm(100, generator=torch.Generator().manual_seed(W)).float().unsqueeze(0)
    done = check(logits, batch, SMALL._replace(maxima=256))
    got = cuda_batch.unpack(done, batch)
    assert done.selector._threshold[0].item() == key_of(got, W - 1) >> 32 << 32
    assert done.selector._stored[0].item() == W


# ---- storage that is too small -----------------------------------------------------------------------------


def fresh(batch: BeamBatch, done: cuda_batch.Launched) -> tuple[BeamState, BeamState]:
    """Beams of a batch before its step, and a state for those after it."""
    now = BeamState(batch.row_offsets[-1], 1, DEVICE)
    for column, values in ((now.score, batch.scores), (now.lo, batch.lo), (now.hi, batch.hi)):
        column.copy_(torch.from_numpy(np.array(values)))
    return now, BeamState(len(done.next.packed), 1, DEVICE)


def test_more_ties_than_storage_are_collected_again() -> None:
    """W=10 of 200 equal scores, storage for 128: a round drops 118 at least, whichever were stored."""
    trie = build_trie(np.argwhere(np.ones((2, 100))))
    batch = build_batch(np.random.default_rng(0), [Ask(trie, 1, 10)])
    batch.scores[:] = -1.0
    done = check(torch.zeros(2, 100), batch)
    assert done.rounds == 1
    now, next_ = fresh(batch, done)
    tables = cuda_batch.fill_table(done.selector, batch, np.array(batch.row_offsets), done.out_begin)
    done.selector.select(torch.zeros(2, 100, device=DEVICE), now, next_, splits=1)
    assert done.selector.overflow.tolist() == [0]
    torch.testing.assert_close(next_.packed, done.next.packed, rtol=0, atol=0)
    del tables


def test_overflow_is_flagged_and_the_exact_way_resolves_it() -> None:
    """W=60, 600 children in 64 blocks, later ones better: a bad bound, and storage fills with the worst."""
    rng = np.random.default_rng(0)
    trie = build_trie(np.argwhere(np.ones((6, 100))))
    batch = build_batch(rng, [Ask(trie, 1, 60), Ask(trie, 1, 5, 3)])
    batch.scores[:] = np.arange(9) / 10
    logits = torch.arange(100).float().repeat(9, 1) / 100
    done = check(logits, batch)
    assert done.rounds > 1
    now, next_ = fresh(batch, done)
    tables = cuda_batch.fill_table(done.selector, batch, np.array(batch.row_offsets), done.out_begin)
    done.selector.select(logits.to(DEVICE), now, next_, splits=1)
    assert done.selector.overflow.tolist() == [1, 0]
    assert done.selector.count.tolist() == [0, 5]
    assert (next_.lo[:60] == next_.hi[:60]).all()
    torch.testing.assert_close(next_.packed[60:], done.next.packed[60:], rtol=0, atol=0)
    done.selector.begin()
    assert done.selector.overflow.tolist() == [0, 0]
    del tables


# ---- steps of a cohort, as an engine takes them ------------------------------------------------------------


class Cohort:
    """Requests that run all levels of their tries in one selector, beside the definition."""

    ROWS, T, V = 32, 2, 64

    def __init__(self, rng: np.random.Generator, asks: list[Ask], slots: int) -> None:
        self.rng, self.asks = rng, asks
        self.selector = Selector(
            rows=self.ROWS,
            requests=slots,
            vocab=self.V,
            max_width=16,
            tail_tokens=self.T,
            device=DEVICE,
            tuning=SMALL,
        )
        self.tries = [DeviceTrie(ask.trie, DEVICE) for ask in asks]
        self.filters = DeviceFilters(slots, max(ask.trie.leaves for ask in asks), DEVICE)
        self.now, self.next = (BeamState(self.ROWS, self.T, DEVICE) for _ in range(2))
        self.now.anc.fill_(-5)  # a root has no ancestors, whatever its row holds
        self.begins = np.arange(len(asks) + 1)
        for b, ask in enumerate(asks):
            self.now.hi[b] = ask.trie.leaves
        self.want = build_batch(rng, [replace(ask, level=0) for ask in asks])
        self.want.scores[:] = 0
        self.anc = np.zeros((len(asks), self.T), np.int32)
        self.ceiling = np.full(slots, -np.inf, np.float32)

    def passes_over(self, ask: Ask, level: int) -> bool:
        return ask.width < min(len(ask.trie.tokens[level]), ask.leaves.live(ask.trie.leaves))

    def step(self, level: int, poison: tuple[int, int] | None = None) -> None:
        """Selects a level and compares it, row by row; the padding rows hold NaN."""
        sizes = [min(ask.width, len(ask.trie.tokens[level])) for ask in self.asks]
        out = np.cumsum([0, *sizes])
        table = np.zeros((self.selector.requests, self.selector.table.shape[1]), np.int64)
        owner = np.full(self.ROWS, -1, np.int32)
        for b, ask in enumerate(self.asks):
            begin, end = int(self.begins[b]), int(self.begins[b + 1])
            owner[begin:end] = b
            table[b] = request_row(
                row_begin=begin,
                row_end=end,
                out_begin=int(out[b]),
                out_rows=sizes[b],
                width=ask.width,
                level=level,
                legal=ask.mode == "legal",
                trie=self.tries[b],
                leaves=self.filters.put(b, ask.leaves),
                passes_over=self.passes_over(ask, level),
            )
        self.selector.table.copy_(torch.from_numpy(table))
        self.selector.owner.copy_(torch.from_numpy(owner))
        logits = torch.from_numpy(self.rng.normal(0, 3, (self.ROWS, self.V)).astype(np.float32))
        logits[self.begins[-1] :] = np.nan
        logits[(self.now.lo >= self.now.hi).cpu()] = np.nan
        if poison is not None:
            logits[poison] = np.nan
        self.selector._total.fill_(np.nan)  # as another request's row may have left it
        self.next.packed.fill_(-7)
        self.selector.select(logits.to(DEVICE), self.now, self.next, splits=2)
        self.compare(logits, out, level)
        self.now, self.next = self.next, self.now
        self.begins = out

    def compare(self, logits: torch.Tensor, out: np.ndarray, level: int) -> None:
        """`next` holds what the definition chooses, dead rows behind it, and nothing else was touched."""
        live = (self.now.lo < self.now.hi).cpu().numpy()
        rows = np.flatnonzero(live[: self.begins[-1]])
        lse = self.selector.lse.cpu().numpy()[rows]
        want = reference.select(logits[rows], self.want, lse=lse)
        np.testing.assert_array_equal(
            self.selector.count.cpu().numpy()[: len(self.asks)], np.diff(want.offsets)
        )
        expected = np.full((self.ROWS, 4 + self.T), -7, np.int32)
        expected[: out[-1]] = 0
        expected[: out[-1], 1] = np.float32(-np.inf).view(np.int32)
        anc = []
        for b in range(len(self.asks)):
            of, begin = want.of(b), self.want.row_offsets[b]
            place = slice(int(out[b]), int(out[b]) + of.stop - of.start)
            parents = begin + want.parent[of]
            inherited = self.anc[parents].copy() if level else np.zeros((len(parents), self.T), np.int32)
            if 1 <= level <= self.T:
                inherited[:, level - 1] = rows[parents]
            columns = (want.token[of], want.score[of].view(np.int32), want.lo[of], want.hi[of])
            expected[place] = np.concatenate([np.stack(columns, 1), inherited], 1)
            anc.append(inherited)
            if self.passes_over(self.asks[b], level) and of.stop - of.start == self.asks[b].width:
                self.ceiling[b] = max(self.ceiling[b], want.score[of][-1])
        np.testing.assert_array_equal(self.selector.ceiling.cpu().numpy(), self.ceiling)
        np.testing.assert_array_equal(self.next.packed.cpu().numpy(), expected)
        self.anc = np.concatenate(anc)
        self.want = replace(
            self.want,
            row_offsets=want.offsets.tolist(),
            level=[level + 1] * len(self.asks),
            scores=want.score,
            lo=want.lo,
            hi=want.hi,
        )


def cohort_of_four(rng: np.random.Generator) -> Cohort:
    """Two catalogs, filters of all kinds, a request with fewer leaves than its width, one with none alive."""
    wide, narrow = random_trie(rng, 500, 4, 64), random_trie(rng, 6, 4, 64)
    asks = [
        Ask(wide, 0, 12, leaves=random_filter(rng, wide.leaves, "bits+deny")),
        Ask(narrow, 0, 9, mode="legal"),
        Ask(wide, 0, 5, leaves=random_filter(rng, wide.leaves, "deny"), mode="legal"),
        Ask(narrow, 0, 3, leaves=random_filter(rng, narrow.leaves, "all denied")),
    ]
    return Cohort(rng, asks, slots=5)


def test_steps_of_a_cohort() -> None:
    cohort = cohort_of_four(np.random.default_rng(8))
    for level in range(4):
        cohort.step(level)
    assert cohort.selector.invalid.sum() == cohort.selector.overflow.sum() == 0
    assert np.isfinite(cohort.ceiling).tolist() == [True, False, True, False, False]


def test_invalid_stays_until_the_next_cohort() -> None:
    cohort = cohort_of_four(np.random.default_rng(9))
    cohort.step(0)
    cohort.step(1, poison=(int(cohort.begins[2]) + 1, 63))
    cohort.step(2)
    assert cohort.selector.invalid.tolist() == [0, 0, 1, 0, 0]
    cohort.selector.begin()
    assert cohort.selector.invalid.sum() == 0


def test_filter_slots_are_reused_and_become_larger() -> None:
    rng = np.random.default_rng(4)
    trie = random_trie(rng, 600, 2, 64)
    cohort = Cohort(rng, [Ask(trie, 0, 12, leaves=random_filter(rng, trie.leaves, "bits+deny"))], slots=1)
    cohort.filters = DeviceFilters(1, 100, DEVICE)
    cohort.step(0)
    for kind in ("deny", "none", "bits"):
        again = Cohort(rng, [Ask(trie, 0, 12, leaves=random_filter(rng, trie.leaves, kind))], slots=1)
        again.filters = cohort.filters
        again.step(0)
        again.step(1)


# ---- limits ------------------------------------------------------------------------------------------------


def test_empty_batch() -> None:
    batch = build_batch(np.random.default_rng(0), [])
    got = cuda_batch.select(torch.zeros(0, 7, device=DEVICE), batch)
    assert got.offsets.tolist() == [0]
    assert len(got.score) == 0


def test_refuses_logits_that_no_gpu_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.JITFunction", object)  # as if nothing were interpreted
    batch = build_batch(np.random.default_rng(0), [])
    with pytest.raises(ValueError, match="on a GPU"):
        cuda_batch.select(torch.zeros(0, 7), batch)


def test_refuses_what_keys_cannot_tell_apart() -> None:
    sizes: dict[str, Any] = {"rows": 4, "requests": 1, "tail_tokens": 1, "device": DEVICE}
    with pytest.raises(ValueError, match="width 4097"):
        Selector(vocab=64, max_width=MOST_ROWS + 1, **sizes)
    with pytest.raises(ValueError, match="vocabulary 1048577"):
        Selector(vocab=2**20 + 1, max_width=4, **sizes)
    with pytest.raises(ValueError, match="token 1048576"):
        DeviceTrie(Trie(1, (np.array([2**20], np.int32),), (np.empty(0, np.int32),)), DEVICE)


def test_refuses_filters_that_deny_too_many() -> None:
    filters = DeviceFilters(1, 64, DEVICE)
    with pytest.raises(ValueError, match="denies 300"):
        filters.put(0, no_filter()._replace(deny=np.arange(300, dtype=np.int32)))


@pytest.mark.parametrize("requests", [1, 8, 16, 64, 256])
@pytest.mark.parametrize("max_width", [1, 50, 512, 1024, 4096])
def test_tuning_serves_every_size(requests: int, max_width: int) -> None:
    """The constructor asserts what the kernels rely on."""
    made = Selector(
        rows=8, requests=requests, vocab=64, max_width=max_width, tail_tokens=1, device="meta"
    ).tuning
    for size in made:
        assert size & (size - 1) == 0
    assert made.capacity >= 2 * max_width
    assert made.maxima >= 2 * max_width


@pytest.mark.parametrize(
    ("rows", "V", "splits"), [(1, 8192, 4), (1, 151936, 64), (64, 151936, 16), (1024, 8192, 1), (0, 3, 1)]
)
def test_splits_fill_a_gpu(rows: int, V: int, splits: int) -> None:
    assert splits_for(rows, V) == splits
