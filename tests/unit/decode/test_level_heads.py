"""Which part of the vocabulary head a level needs."""

import numpy as np
import pytest
import torch

from decode_worker.engines.level_heads import LevelHead, token_range
from xgr_kernels.trie import Trie
from xgr_runtime.model.backends.head import Head


@pytest.mark.parametrize(
    ("tokens", "vocab", "want"),
    [
        ([500, 700], 1003, (500, 756)),
        ([500, 563], 1003, (500, 564)),
        ([0], 1003, (0, 64)),
        ([1002], 1003, (939, 1003)),
        ([900, 1002], 1003, (875, 1003)),
        ([1, 1002], 1003, (0, 1003)),
        ([0, 1002], 1003, (0, 1003)),
        ([3], 60, (0, 60)),
        ([], 1003, (939, 1003)),
    ],
    ids=str,
)
def test_range_of_a_level(tokens: list[int], vocab: int, want: tuple[int, int]) -> None:
    """All its tokens, and so many others that rows of logits stay aligned."""
    assert token_range(np.array(tokens, np.int32), vocab) == want


def test_a_level_that_needs_all_has_no_head_of_its_own() -> None:
    head = Head(torch.randn(200, 8), torch.randn(200), 200)
    levels = ([3, 199], [70, 99], [5])
    trie = Trie(1, tuple(np.array(x, np.int32) for x in levels), (np.empty(0, np.int32),) * 3)
    made = LevelHead.by_level(head, trie)
    assert {level: (part.first_token, part.columns) for level, part in made.items()} == {
        1: (70, 64),
        2: (5, 64),
    }
    hidden = torch.randn(3, 8)
    torch.testing.assert_close(made[1].head.logits(hidden), head.logits(hidden)[:, 70:134])
    assert LevelHead.whole(head)[1:] == (0, 256)
