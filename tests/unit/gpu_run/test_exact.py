"""The fast float64 references against the slow ones that define the kernels."""

import numpy as np
import pytest
import torch
from beam_batches import Ask, build_batch, random_logits, random_trie
from exact import attention, best_scores, candidates
from inputs import make_trie, popular_batch

from xgr_kernels.attention.causal import reference as causal
from xgr_kernels.attention.shared import reference as shared
from xgr_kernels.attention.shared.api import SharedPlan
from xgr_kernels.beam_select import reference as selection

NEAR = 1e-12  # float64


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_attention_is_shared_attention() -> None:
    q, k, v = random(5, 6, 8), random(3, 4, 2, 8), random(3, 4, 2, 8)
    plan = SharedPlan([0, 5], [np.arange(3, dtype=np.int32)], [11], 4)
    want_o, want_lse2 = shared.attend(q, k, v, plan, 0.3)
    o, lse2 = attention(q, k.flatten(0, 1)[:11], v.flatten(0, 1)[:11], 0.3)
    torch.testing.assert_close(o, want_o, rtol=0, atol=NEAR)
    torch.testing.assert_close(lse2, want_lse2, rtol=0, atol=NEAR)


@pytest.mark.parametrize("new", [1, 4, 9])
def test_attention_is_causal_where_rows_see_so_many_tokens(new: int) -> None:
    q, k, v = random(9, 4, 8), random(9, 2, 8), random(9, 2, 8)
    want = causal.attend(q, k, v, [0, 9], 0.3, None)
    o, _ = attention(q[9 - new :], k, v, 0.3, torch.arange(9 - new + 1, 10))
    torch.testing.assert_close(o, want[9 - new :], rtol=0, atol=NEAR)


def test_popular_beams_are_distinct_nodes_with_more_items_than_most() -> None:
    rng = np.random.default_rng(1)
    trie = make_trie(rng, 2000, 97, 3, skewed=True)
    batch = popular_batch(rng, trie, 1, requests=2, width=20)
    sizes = batch.hi - batch.lo
    assert batch.row_offsets == [0, 20, 40] and set(batch.lo.tolist()) <= set(trie.lo[0].tolist())
    for b in (0, 20):
        assert len(set(batch.lo[b : b + 20].tolist())) == 20
    assert sizes.mean() > 2 * np.diff(trie.lo[0]).mean()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_best_scores_are_those_of_the_reference(level: int) -> None:
    rng = np.random.default_rng(level)
    trie = random_trie(rng, 400, 3, 97, skew=1.0)
    batch = build_batch(rng, [Ask(trie, level, width, 13) for width in (7, 1000)])
    logits = random_logits(rng, batch, 97)
    want = selection.select(logits, batch)
    row, token, request = candidates(batch, torch.device("cpu"))
    assert len(row) == len(token) == len(request) == want.elements_total.sum()
    for b, scores in enumerate(best_scores(logits, batch)):
        # The reference rounds its log-sum-exp and its scores to float32.
        np.testing.assert_allclose(scores.numpy(), want.score[want.of(b)], rtol=0, atol=1e-5)
