"""Models whose forward may be captured: it never looks at a value, so it needs no device to be waited for."""

import pytest
import torch
from checkpoints import MakeCheckpoint
from read_backs import NoReadBack, forward_without_read_back

from xgr_runtime.model.choice import load_backend


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "phi3", "olmo2", "granite"])
def test_a_forward_reads_nothing_back(family: str, make_checkpoint: MakeCheckpoint) -> None:
    forward_without_read_back(load_backend("transformers", make_checkpoint(family, 2), "float32"))


def test_a_read_back_is_noticed() -> None:
    with NoReadBack(), pytest.raises(AssertionError, match="reads a value back"):
        bool(torch.ones(2).sum() > 1)
    with NoReadBack(), pytest.raises(AssertionError, match="nonzero"):
        torch.ones(2).nonzero()
