"""What is captured for a GPU looks at no value, moves nothing between host and device, and keeps nothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from made_catalogs import build_from_arrays
from read_backs import NoReadBack, forward_without_read_back
from torch import Tensor

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
from captures import META, MetaDevice, PlacedAttention, without_launches

from decode_worker.engines.cohort_steps import CohortSteps
from prefill_worker.engines.cuda import BucketEngine
from xgr_runtime.model.backends.huggingface import load_eager, open_checkpoint
from xgr_runtime.model.backends.transformers import TransformersBackend
from xgr_runtime.model.base import ModelBackend, Stage
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_memory import private_memory
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, ROWS = 16, 4, 12
HEADS = 1 + 4  # the whole one, and that of each level's tokens


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "phi3", "olmo2", "granite"])
def test_a_forward_reads_nothing_back(family: str, make_checkpoint: MakeCheckpoint) -> None:
    forward_without_read_back(load_backend("transformers", make_checkpoint(family, 2), "float32"))


def test_a_read_back_is_noticed() -> None:
    with NoReadBack(), pytest.raises(AssertionError, match="reads a value back"):
        bool(torch.ones(2).sum() > 1)
    with NoReadBack(), pytest.raises(AssertionError, match="nonzero"):
        torch.ones(2).nonzero()


# ---- whole engines, on tensors without values --------------------------------------------------------------


def on_meta(make_checkpoint: MakeCheckpoint) -> ModelBackend:
    checkpoint = open_checkpoint(make_checkpoint("qwen3", 2, num_hidden_layers=2))
    model = load_eager(checkpoint, "bfloat16", "meta")
    model.set_attn_implementation("xgr")
    return TransformersBackend(model, checkpoint, "bfloat16")


def pool_of(model: ModelBackend) -> KvPool:
    return KvPool(model.identity, PAGES, PAGE, private_memory(model.identity, PAGES, PAGE, META))


def capture_decode(model: ModelBackend) -> MetaDevice:
    device, sids = MetaDevice(), np.random.default_rng(5).integers(3, 12, (40, 4)).astype(np.int32)
    trie = build_from_arrays([str(i) for i in range(len(sids))], sids).trie

    def attention(rows: int, requests: int) -> list[PlacedAttention]:
        return [PlacedAttention(model.identity, model.q_heads, rows)]

    steps = CohortSteps(model, pool_of(model), device, trie, ROWS, 4, attention, max_requests=4)
    steps.buckets = (5, ROWS)
    steps.capture()
    return device


def capture_prefill(model: ModelBackend) -> MetaDevice:
    device = MetaDevice()

    def attention(rows: int, requests: int) -> PlacedAttention:
        return PlacedAttention(model.identity, model.q_heads, rows)

    engine = BucketEngine(model, pool_of(model), device, ROWS, attention)
    engine._capture(ROWS)
    return device


def test_engines_capture_launches_alone(make_checkpoint: MakeCheckpoint) -> None:
    model = on_meta(make_checkpoint)
    with without_launches() as launched:
        # Of each of two buckets a forward and a selection for each head, and the first selections.
        assert capture_decode(model).captured == 2 * (1 + HEADS) + HEADS
    layers = model.identity.layers
    assert launched.count("tail_attention_kernel") == 2 * 2 * layers  # twice: before the capture, too
    assert launched.count("emit") == 2 * 3 * HEADS
    assert capture_prefill(model).captured == 1


class Mistaken:
    """A model whose forward does something else before."""

    def __init__(self, model: ModelBackend, mistake: Callable[[Tensor], object]) -> None:
        self._model, self._mistake = model, mistake
        self.kept: list[object] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def forward(self, tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        self.kept = [self._mistake(positions)]
        return self._model.forward(tokens, positions, stage, keep)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda positions: torch.tensor([1, 2]).to(positions.device), "copies between host and device"),
        (
            lambda positions: positions + torch.arange(len(positions)),
            "tensors of host and device|expected device meta",
        ),
        (lambda positions: positions.cos(), "pool is kept: the results of aten::cos"),
        (lambda positions: bool((positions > 5).any()), "meta tensors|reads a value back"),
    ],
    ids=["host-copy", "mixed-devices", "keeps-pool-memory", "reads-back"],
)
def test_mistakes_are_caught(
    mistake: Callable[[Tensor], object], says: str, make_checkpoint: MakeCheckpoint
) -> None:
    model = Mistaken(on_meta(make_checkpoint), mistake)
    with without_launches(), pytest.raises((AssertionError, RuntimeError), match=says):
        capture_prefill(model)  # type: ignore[arg-type]
