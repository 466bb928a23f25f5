"""The vocabulary head: its products, where they are written, and vocabularies of any size."""

import pytest
import torch

from xgr_kernels.beam_select.cuda_memory import logit_rows
from xgr_runtime.model.backends import head as head_module
from xgr_runtime.model.backends.head import Head

VOCAB, HIDDEN, ROWS = 1003, 24, 5
TOLERANCE = 1e-5  # float32 sums of 24 products, in another order


@pytest.fixture(params=["packed", "plain"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that a CPU lays out anew, and one that is too large for that."""
    if request.param == "plain":
        monkeypatch.setattr(head_module, "_PACKED", 0)


@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_logits_go_into_longer_rows(packs: None, biased: bool) -> None:
    """The weights are an embedding that is padded to 1,024 tokens; the rows of logits are, too."""
    embedding = torch.randn(1024, HIDDEN)
    bias = torch.randn(1024) if biased else None
    hidden = torch.randn(ROWS, HIDDEN)
    rows = logit_rows(ROWS, VOCAB, "cpu")
    Head(embedding, bias, VOCAB).logits_into(hidden, rows[:, :VOCAB])
    want = hidden.double() @ embedding[:VOCAB].double().T + (0 if bias is None else bias[:VOCAB].double())
    torch.testing.assert_close(rows[:, :VOCAB].double(), want, rtol=0, atol=TOLERANCE)
    assert rows.shape == (ROWS, 1024) and (rows[:, VOCAB:] == -torch.inf).all()
