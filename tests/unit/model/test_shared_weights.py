"""Weights that lie in memory once: the other process computes the same with them, and frees its own."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import SharedTensor, SharedWeights
from xgr_runtime.model.memory.shared_weights import WeightSharing, adopt_weights, export_weights

MIB = 1 << 20


class Tied(nn.Module):
    """An embedding whose weight is also the head's, a layer, and a weight that is not contiguous."""

    def __init__(self, seed: int, width: int = 6, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(9, width, dtype=dtype)
        self.layer = nn.Linear(width, width, dtype=dtype)
        self.head = nn.Linear(width, 9, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(3, 5, dtype=dtype).t())
        self.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.layer(self.embed(tokens)))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_compute_the_same(dtype: torch.dtype) -> None:
    ours, theirs, tokens = Tied(1, dtype=dtype), Tied(2, dtype=dtype), torch.arange(9)
    expected = ours(tokens)
    shared, block = export_weights(ours)
    assert torch.equal(ours(tokens), expected), "moving them changes nothing"
    adopt_weights(theirs, msgspec.json.decode(msgspec.json.encode(shared), type=SharedWeights))
    assert torch.equal(theirs(tokens), expected)
    assert theirs.head.weight is theirs.embed.weight, "tied weights stay so"
    assert set(shared.tensors) == {"embed.weight", "layer.weight", "layer.bias"}
    assert all(tensor.offset % 256 == 0 for tensor in shared.tensors.values())
    ours.layer.bias.zero_()
    assert not theirs.layer.bias.any(), "it is one memory"
    del block


@pytest.mark.parametrize(
    "other", [Tied(2, width=7), Tied(2, dtype=torch.bfloat16), nn.Linear(6, 6)], ids=repr
)
def test_weights_of_another_model_are_refused(other: nn.Module) -> None:
    shared, block = export_weights(Tied(1))
    before = [weight.data_ptr() for weight in other.parameters()]
    with pytest.raises(ConfigError, match="weight"):
        adopt_weights(other, shared)
    assert [weight.data_ptr() for weight in other.parameters()] == before
    del block


def test_who_shares_nothing_changes_nothing() -> None:
    module, sharing = Tied(1), WeightSharing(publishes=False, memory_of="", stopping=bool)
    before = [weight.data_ptr() for weight in module.parameters()]
    sharing.place(module)
    assert sharing.shared is None and [weight.data_ptr() for weight in module.parameters()] == before


def test_a_tensor_is_described_by_plain_numbers() -> None:
    shared, block = export_weights(nn.Linear(2, 3))
    assert shared.tensors["weight"] == SharedTensor(0, [3, 2], "float32") and shared.region.size == 512
    del block


def private_bytes() -> int:
    """Memory of this process alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def read(pipe: Connection) -> None:
    """Another process with the same model: adopts, and says what that does to its memory."""
    module = nn.Linear(4096, 4096, bias=False).requires_grad_(False)  # 64 MiB
    before = private_bytes()
    adopt_weights(module, msgspec.json.decode(pipe.recv(), type=SharedWeights))
    pipe.send((before - private_bytes(), float(module.weight.double().sum())))


def test_another_process_frees_its_own() -> None:
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=read, args=(theirs,))
    process.start()
    module = nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    shared, block = export_weights(module)
    ours.send(msgspec.json.encode(shared))
    freed, total = ours.recv()
    process.join()
    assert freed > 60 * MIB and total == float(module.weight.double().sum())
    del block
