"""SGLang's layers may be captured: their forward never looks at a value."""

import pytest
from checkpoints import MakeCheckpoint
from read_backs import forward_without_read_back

from xgr_runtime.model.choice import load_backend


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_forward_reads_nothing_back(family: str, make_checkpoint: MakeCheckpoint) -> None:
    forward_without_read_back(load_backend("sglang", make_checkpoint(family, 2), "float32"))
