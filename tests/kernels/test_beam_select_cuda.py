"""Beam selection in Triton against the definition: on a GPU where there is one, else interpreted."""

import numpy as np
import pytest
import torch
from beam_batches import (
    Ask,
    assert_equal,
    build_batch,
    random_filter,
    random_logits,
    random_trie,
)

from xgr_kernels.beam_select import BeamBatch, ScoreMode, Selection, beam_select, reference

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
from xgr_kernels.beam_select import cuda_batch
from xgr_kernels.beam_select.cuda import Tuning

# An interpreter divides 0 by 0 and overflows where a GPU does so in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Exponentials are float32, good to some 1e-7 of their sum; a score near 32 has steps of 2e-6, rounded twice.
TOLERANCE = 8e-6
FILTERS = ["none", "bits", "deny", "bits+deny", "all denied"]
# Small sizes, so that small batches have many tiles, several programs and several blocks in each of them.
SMALL = Tuning(block=64, tile=64, programs=4, maxima=128, capacity=256)


def run(
    logits: torch.Tensor, batch: BeamBatch, tuning: Tuning | None = SMALL, splits: int = 3
) -> tuple[cuda_batch.Run, Selection]:
    done = cuda_batch.launch(logits.to(DEVICE), batch, tuning, splits)
    return done, cuda_batch.unpack(done, batch)


def check(
    logits: torch.Tensor, batch: BeamBatch, tuning: Tuning | None = SMALL, splits: int = 3
) -> Selection:
    """Equals a full sort of the same float32 scores, nearly those of float64; the threshold is a true bound."""
    done, got = run(logits, batch, tuning, splits)
    assert_equal(got, reference.select(logits, batch, lse=done.selector.lse.cpu().numpy()))
    exact = beam_select(logits, batch, "reference")
    np.testing.assert_array_equal(got.offsets, exact.offsets)
    np.testing.assert_array_equal(got.invalid, exact.invalid)
    np.testing.assert_allclose(got.score, exact.score, rtol=0, atol=TOLERANCE)
    for b, threshold in enumerate(done.selector._threshold.tolist()):
        of = got.of(b)
        if of.stop > of.start:
            assert threshold <= last_key(got, of.stop - 1)
    return got


def last_key(got: Selection, i: int) -> int:
    """The key of result i, as Python computes it."""
    bits = int(got.score[i].view(np.int32))
    image = bits if bits >= 0 else bits ^ 0x7FFFFFFF
    return (image << 32) | (~(int(got.parent[i]) << 20 | int(got.token[i])) & 0xFFFFFFFF)


@pytest.mark.parametrize("mode", ["vocab", "legal"])
@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize(("R", "V", "W", "depth"), [(1, 257, 1, 1), (7, 1027, 33, 2), (33, 257, 100, 3)])
def test_matches_reference(R: int, V: int, W: int, depth: int, kind: str, mode: ScoreMode) -> None:
    rng = np.random.default_rng([R, V, W, depth])
    trie = random_trie(rng, 1500, depth, V, skew=2.0)
    asks = [Ask(trie, level, W, R, random_filter(rng, trie.leaves, kind), mode) for level in range(depth)]
    batch = build_batch(rng, asks)
    got = check(random_logits(rng, batch, V), batch)
    assert (len(got.score) == 0) == (kind == "all denied")
