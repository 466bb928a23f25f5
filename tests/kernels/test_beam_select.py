"""Beam selection: the compiled kernel against the definition, and both against hand-made cases."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import by_pairs

from xgr_kernels.beam_select import BeamBatch, Selection, beam_select, cpu, cpu_kernels, reference
from xgr_kernels.trie import Normaliser, no_filter

# float32 near 12 to 30 has steps of 1e-6 to 2e-6; a log-probability is rounded twice, once in the log-sum-exp
TOLERANCE = 4e-6
MODES: list[Normaliser] = ["vocab", "legal", "given"]


def check(logits: torch.Tensor, batch: BeamBatch) -> Selection:
    """cpu equals a full sort of the same float32 scores, nearly those of float64; its cut is a true bound."""
    launch = cpu.launch(logits, batch)
    got = cpu.unpack(launch, batch)
    assert_equal(got, reference.select(logits, batch, lse=launch.lse))
    exact = beam_select(logits, batch, "reference")
    np.testing.assert_array_equal(got.offsets, exact.offsets)
    np.testing.assert_array_equal(got.invalid, exact.invalid)
    np.testing.assert_allclose(got.score, exact.score, rtol=0, atol=2 * TOLERANCE)
    for b in range(len(batch.width)):
        of = got.of(b)
        if of.stop - of.start == batch.width[b]:
            worst = cpu_kernels._order(got.score[of.stop - 1])
            assert worst <= launch.counts[b, 3] >> 32
    assert (got.elements_visited <= got.elements_total).all()
    return got


@pytest.mark.in_turns("R")
@by_pairs(
    {
        "R, V, W, depth": [
            (1, 1027, 1, 1),
            (1, 1027, 5000, 1),
            (7, 1027, 33, 2),
            (33, 8191, 1, 2),
            (33, 8191, 700, 2),
            (33, 1027, 128, 3),
            (7, 1027, 5000, 4),
            (33, 1027, 64, 4),
        ],
        "kind": ["none", "bits", "deny", "bits+deny", "all denied"],
        "mode": MODES,
    }
)
def test_matches_reference(R: int, V: int, W: int, depth: int, kind: str, mode: Normaliser) -> None:
    rng = np.random.default_rng([R, V, W, depth])
    trie = random_trie(rng, 3000, depth, V, skew=2.0)
    asks = [Ask(trie, level, W, R, random_filter(rng, trie.leaves, kind), mode) for level in range(depth)]
    batch = build_batch(rng, asks)
    got = check(random_logits(rng, batch, V), batch)
    assert (len(got.score) == 0) == (kind == "all denied")


@pytest.mark.parametrize("V", [1027, 8191, 151936])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_log_probabilities_match_float64(V: int, spread: float) -> None:
    rng = np.random.default_rng(V)
    logits = torch.from_numpy(rng.normal(0, spread, (2, V)).astype(np.float32))
    trie = build_trie(np.stack([np.repeat(np.arange(2), V), np.tile(np.arange(V), 2)], 1))
    first = trie.lo[0]
    batch = BeamBatch(
        [0, 2], [1], [2 * V], [trie], [no_filter()], ["vocab"], np.zeros(2, np.float32), first[:-1], first[1:]
    )
    got = beam_select(logits, batch)
    exact = logits.double().log_softmax(-1).numpy()[got.parent, got.token]
    assert len(got.score) == 2 * V
    np.testing.assert_allclose(got.score, exact, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [0.5, 4.0, 1000.0])
def test_ties_are_ordered_exactly(step: float) -> None:
    """Coarse logits: only parent and token tell many candidates apart."""
    rng = np.random.default_rng(5)
    trie = random_trie(rng, 6000, 2, 511)
    batch = build_batch(rng, [Ask(trie, 1, W, 40) for W in (1, 63, 64, 1000)])
    batch.scores[:] = -0.0
    logits = random_logits(rng, batch, 511, step)
    got = check(logits, batch)
    assert not np.signbit(got.score[got.score == 0]).any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_full_sort(data: st.DataObject) -> None:
    """Any mix of requests, tries, levels, filters, modes, ties and -inf."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    V = data.draw(st.sampled_from([3, 64, 257, 1027]), "V")
    asks = []
    for _ in range(data.draw(st.integers(1, 5), "requests")):
        depth = data.draw(st.integers(1, 4), "depth")
        trie = random_trie(
            rng, data.draw(st.integers(1, 1500), "leaves"), depth, V, data.draw(st.sampled_from([0, 3]))
        )
        kind = data.draw(st.sampled_from(["none", "bits", "deny", "bits+deny", "all denied"]), "filter")
        level = data.draw(st.integers(0, depth - 1), "level")
        width = data.draw(st.sampled_from([1, 2, 7, 50, 300, 4000]), "width")
        rows = data.draw(st.sampled_from([0, 1, 7, 33]), "rows")
        mode = data.draw(st.sampled_from(MODES), "mode")
        asks.append(Ask(trie, level, width, rows, random_filter(rng, trie.leaves, kind), mode))
    batch = build_batch(rng, asks)
    logits = random_logits(rng, batch, V, data.draw(st.sampled_from([0.0, 0.5, 3.0]), "step"))
    logits[torch.rand(logits.shape) < data.draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    check(logits, batch)


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("column", [0, 500, 1026])
@pytest.mark.parametrize("mode", MODES)
def test_bad_logit_fails_its_request_alone(poison: float, column: int, mode: Normaliser) -> None:
    rng = np.random.default_rng(3)
    trie = random_trie(rng, 900, 2, 1027)
    batch = build_batch(rng, [Ask(trie, 1, 20, 7, mode=mode) for _ in range(3)])
    logits = random_logits(rng, batch, 1027)
    healthy = beam_select(logits, batch)
    logits[10, column] = poison
    for backend in ("cpu", "reference"):
        got = beam_select(logits, batch, backend)
        assert got.invalid.tolist() == [False, True, False]
        assert got.of(1).start == got.of(1).stop
    got = beam_select(logits, batch)
    for b in (0, 2):
        np.testing.assert_array_equal(got.score[got.of(b)], healthy.score[healthy.of(b)])
        np.testing.assert_array_equal(got.token[got.of(b)], healthy.token[healthy.of(b)])


def test_poison_after_a_row_of_minus_infinity() -> None:
    trie = build_trie(np.arange(5000).reshape(-1, 1))
    batch = build_batch(np.random.default_rng(0), [Ask(trie, 0, 4)])
    logits = torch.full((1, 5000), -np.inf)
    logits[0, 4321] = np.nan
    assert beam_select(logits, batch).invalid.all()


def test_all_minus_infinity_is_invalid_only_with_live_children() -> None:
    trie = build_trie(np.arange(9).reshape(-1, 1))
    dead = build_filter(np.zeros(9, bool))
    batch = build_batch(np.random.default_rng(0), [Ask(trie, 0, 4), Ask(trie, 0, 4, leaves=dead)])
    got = check(torch.full((2, 9), -np.inf), batch)
    assert got.invalid.tolist() == [True, False]


def test_batch_mates_change_nothing() -> None:
    rng = np.random.default_rng(11)
    asks = [Ask(random_trie(rng, 2000, 3, 1027, 1.0), level, 50, 20) for level in (2, 0, 1)]
    batch = build_batch(rng, asks)
    logits = random_logits(rng, batch, 1027)
    together = beam_select(logits, batch)
    for b, ask in enumerate(asks):
        rows = slice(batch.row_offsets[b], batch.row_offsets[b + 1])
        alone = BeamBatch(
            [0, rows.stop - rows.start],
            [ask.level],
            [ask.width],
            [ask.trie],
            [ask.leaves],
            [ask.mode],
            batch.scores[rows],
            batch.lo[rows],
            batch.hi[rows],
        )
        got = beam_select(logits[rows].clone(), alone)
        np.testing.assert_array_equal(got.score, together.score[together.of(b)])
        np.testing.assert_array_equal(got.lo, together.lo[together.of(b)])


def test_early_termination_skips_most_children() -> None:
    rng = np.random.default_rng(2)
    trie = build_trie(np.stack([np.repeat(np.arange(64), 2048), np.tile(np.arange(2048), 64)], 1))
    batch = build_batch(rng, [Ask(trie, 1, 32)])
    got = beam_select(random_logits(rng, batch, 2048), batch)
    assert got.elements_total.tolist() == [64 * 2048]
    assert got.elements_visited[0] < 64 * 2048 // 10
    assert got.rows_skipped[0] > 0


@pytest.mark.parametrize("deny", [False, True], ids=["bits", "bits+deny"])
def test_nodes_with_many_leaves_live_by_their_ranks(deny: bool) -> None:
    """Of one word, of many, of more than are counted one after the other; some with no live leaf."""
    rng = np.random.default_rng(3)
    sizes = [1, 63, 64, 65, 5000, 1, 130, 4096, 2, 9000, 700]
    sids = np.array([(node, leaf) for node, size in enumerate(sizes) for leaf in range(size)], np.int32)
    dead = np.isin(sids[:, 0], [1, 4, 8])
    alive = (rng.random(len(sids)) < 0.02) & ~dead
    allowed = np.flatnonzero(alive)
    leaves = build_filter(alive, allowed[::3][:256] if deny else None)
    trie = build_trie(sids)
    for level in (0, 1):
        batch = build_batch(rng, [Ask(trie, level, 40, leaves=leaves)])
        found = check(random_logits(rng, batch, 9000), batch)
        assert not np.isin(found.token, [1, 4, 8]).any() if level == 0 else len(found.token) == 40


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_batch(backend: str) -> None:
    batch = build_batch(np.random.default_rng(0), [])
    got = beam_select(torch.zeros(0, 7), batch, backend)
    assert got.offsets.tolist() == [0]
    assert len(got.score) == 0


def test_refuses_what_it_cannot_read() -> None:
    batch = build_batch(np.random.default_rng(0), [Ask(build_trie(np.arange(9).reshape(-1, 1)), 0, 4)])
    with pytest.raises(ValueError, match="float32"):
        beam_select(torch.zeros(1, 9, dtype=torch.float64), batch)
    with pytest.raises(ValueError, match="rows"):
        beam_select(torch.zeros(2, 9), batch)
    with pytest.raises(ValueError, match="backend"):
        beam_select(torch.zeros(1, 9), batch, "gpu")


def test_read_only_catalogs_need_no_second_compilation() -> None:
    rng = np.random.default_rng(4)
    trie = random_trie(rng, 100, 2, 64)
    before = len(cpu_kernels.select.signatures) or 1
    for array in (*trie.tokens, *trie.lo):
        array.flags.writeable = False
    batch = build_batch(rng, [Ask(trie, 1, 8)])
    batch.scores.flags.writeable = False
    check(random_logits(rng, batch, 64), batch)
    assert len(cpu_kernels.select.signatures) == before
