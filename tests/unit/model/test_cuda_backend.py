"""A GPU's own way through the layers, its kernels interpreted: the library's numbers, and a way to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from planned_attention import PlannedAttention
from read_backs import forward_without_read_back
from torch import Tensor

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")

from xgr_kernels.row_ops import norm_and_rotate
from xgr_runtime.kv.published import SharedWeights
from xgr_runtime.model.backends import cuda, fused, transformers
from xgr_runtime.model.backends.cuda import CudaBackend
from xgr_runtime.model.backends.huggingface import load_eager, open_checkpoint
from xgr_runtime.model.backends.transformers import TransformersBackend
from xgr_runtime.model.base import ModelBackend, Place
from xgr_runtime.model.kept_checks import KeptChecks
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.memory.shared_weights import adopt_weights, export_weights
from xgr_runtime.model.stages import CascadeStage, PagedPrefillStage

PAGE, PAGES, ROWS = 4, 4, 6
USED = 5  # rows; the bucket has one more
# float32: the same sums in another order, over two layers whose hidden states are of a few units
TOLERANCE = 1e-5
ONE_LAYER = {"num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def played_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader takes this machine's CPU for a GPU."""
    monkeypatch.setattr(transformers, "for_gpu", lambda model_type, device: model_type in fused.FAMILY)


def unchecked(folder: Path, dtype: str = "float32") -> CudaBackend:
    """In our layers, as after a start that has checked them."""
    model = load_eager(checkpoint := open_checkpoint(folder), dtype)
    own = cuda.own_way(model, checkpoint, dtype, None, None)
    assert own is not None
    return own


def library(folder: Path) -> ModelBackend:
    model = load_eager(checkpoint := open_checkpoint(folder), "float32")
    model.set_attn_implementation("xgr")
    return TransformersBackend(model, checkpoint, "float32")


def run(model: ModelBackend, keep: Tensor | None = None) -> tuple[Tensor, KvPool]:
    """Two prompts in a bucket that they do not fill, on scattered pages: their hidden states and KV."""
    pool = KvPool(model.identity, PAGES, PAGE)
    pages = torch.tensor([3, 0], dtype=torch.int32).numpy()
    attention = PlannedAttention(ROWS, 2, PAGE, causal=True)
    attention.plan([0, 2, USED], [pages[:1], pages[1:]], [2, 3])
    slots = torch.tensor([12, 13, 0, 1, 2, pool.scratch_page * PAGE])
    tokens, positions = torch.tensor([5, 90, 41, 3, 77, 0]), torch.tensor([0, 1, 0, 1, 2, 0])
    stage = PagedPrefillStage(pool, slots, attention, lambda layer: None, keep)
    hidden = model.forward(tokens, positions, stage, keep)
    return hidden[:USED], pool


OPTIONS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "llama-biases": ("llama", 2, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        "llama",
        4,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama3": (
        "llama",
        2,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    "llama-yarn-tied": (
        "llama",
        1,
        {
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("mistral", 2, {"sliding_window": None}),
    "qwen2": ("qwen2", 2, {}),
    "qwen3": ("qwen3", 1, {"head_dim": 16}),
    "qwen3-odd-widths": ("qwen3", 2, {"hidden_size": 45, "intermediate_size": 61, "head_dim": 10}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_hidden_states_and_kv_are_those_of_the_library(case: str, make_checkpoint: MakeCheckpoint) -> None:
    family, kv_heads, options = OPTIONS[case]
    folder = make_checkpoint(family, kv_heads, num_hidden_layers=2, **options)
    own, theirs = unchecked(folder), library(folder)
    (hidden, pool), (want, their_pool) = run(own), run(theirs)
    torch.testing.assert_close(hidden, want, rtol=0, atol=TOLERANCE)
    for ours, wanted in ((pool.k, their_pool.k), (pool.v, their_pool.v)):
        torch.testing.assert_close(ours[:, :PAGES], wanted[:, :PAGES], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(own.logits(hidden), theirs.logits(want), rtol=0, atol=3 * TOLERANCE)
    last = torch.tensor([1, 4, 0])
    torch.testing.assert_close(run(own, last)[0], want[last], rtol=0, atol=TOLERANCE)


def test_a_decode_step_is_that_of_the_library(make_checkpoint: MakeCheckpoint) -> None:
    """Where keys come dense and values as a view of the product, and the tail's kernel stores them."""
    folder = make_checkpoint("qwen3", 2, num_hidden_layers=2)
    rows = torch.arange(3)
    tokens, positions = torch.tensor([7, 80, 33]), torch.tensor([4, 4, 3])
    answers = []
    for model in (library(folder), unchecked(folder)):
        _, pool = run(model)
        attention = PlannedAttention(3, 2, PAGE, causal=False)
        attention.plan([0, 1, 3], [np.array([3], np.int32), np.array([0], np.int32)], [2, 3])
        tail = TailKv(model.identity, 2, 3)
        for step in range(2):
            lengths = torch.full((3,), step)
            anc = torch.tensor([[0, 0], [2, 0], [1, 0]])  # the second step's beams descend from others
            stage = CascadeStage(pool, attention, tail.k, tail.v, anc, rows, lengths, "cuda")
            hidden = model.forward(tokens + step, positions + step, stage)
        answers.append((hidden, tail.k, tail.v))
    for got, want in zip(*answers, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


def test_bfloat16_is_near(make_checkpoint: MakeCheckpoint) -> None:
    folder, tokens = make_checkpoint("qwen3", 2, num_hidden_layers=2), torch.arange(3, 9)
    exact = library(folder).forward(tokens, tokens, Values())
    got = unchecked(folder, "bfloat16").forward(tokens, tokens, Values())
    # A step of 2^-8 for each of some ten roundings on a row's way; the interpreter's are whole steps.
    assert float((got.float() - exact).norm() / exact.norm()) < 0.04


class Values:
    """Attention of rows to themselves alone, in which queries and keys take part."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        group = q.shape[1] // v.shape[1]
        return v.repeat_interleave(group, 1) + scale * q * k.repeat_interleave(group, 1)


def test_a_forward_reads_nothing_back(make_checkpoint: MakeCheckpoint) -> None:
    forward_without_read_back(unchecked(make_checkpoint("qwen3", 2, **ONE_LAYER)))


def load(folder: Path, place: Place | None = None, cache: Path | None = None) -> ModelBackend:
    return transformers.load_transformers(folder, "float32", "cpu", place, KeptChecks(cache))


def test_a_start_checks_and_the_next_one_need_not(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("qwen3", 2, **ONE_LAYER)
    first = load(folder, cache=tmp_path)
    assert isinstance(first, CudaBackend) and first.prunes

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was checked before")

    monkeypatch.setattr(cuda, "check_backend", fail)
    monkeypatch.setattr(transformers, "reference_logits", fail)
    second = load(folder, cache=tmp_path)
    assert isinstance(second, CudaBackend)
    assert torch.equal(run(first)[0], run(second)[0])


@pytest.mark.parametrize("wrong", ["gate", "places", "last rows", "no such kernel"])
def test_layers_that_do_something_else_leave_it_to_the_library(
    wrong: str,
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make_checkpoint("qwen3", 2, **ONE_LAYER)

    rotate: Any = norm_and_rotate

    def misplaced(*args: Any) -> Any:
        *before, stored = args
        return rotate(*before, stored and stored._replace(slots=stored.slots.flip(0)))

    def missing(*args: Any) -> Tensor:
        raise RuntimeError("no kernel image")

    if wrong == "gate":
        monkeypatch.setattr(fused, "gated_silu", lambda x, kernels: x.chunk(2, dim=-1)[1].contiguous())
    elif wrong == "places":
        monkeypatch.setattr(fused, "norm_and_rotate", misplaced)
    elif wrong == "last rows":
        monkeypatch.setattr(cuda, "prunes", lambda backend: False)
    else:
        monkeypatch.setattr(fused, "residual_norm", missing)
    theirs = load(folder, lambda _: None)  # and so not in a CPU's own layers
    assert isinstance(theirs, TransformersBackend)
    says = {"last rows": "last tokens alone", "no such kernel": "no kernel image"}.get(wrong, "off by")
    assert says in caplog.text
    torch.testing.assert_close(run(theirs)[0], run(library(folder))[0])  # from weights that were joined


def test_joined_weights_are_shared_by_two_workers(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("qwen2", 2, num_hidden_layers=1, tie_word_embeddings=True)
    other = make_checkpoint("qwen2", 2, seed=1, num_hidden_layers=1, tie_word_embeddings=True)
    offered: list[tuple[SharedWeights, Any]] = []
    models: list[Any] = []
    monkeypatch.setattr(
        transformers, "load_eager", lambda *args: models.append(load_eager(*args)) or models[-1]
    )

    def export(weights: torch.nn.Module) -> None:
        assert models[0].model.layers[0].mlp.up_proj.weight.numel() == 0, (
            "it would keep the joined ones alive"
        )
        offered.append(export_weights(weights))

    first = load(folder, export)
    # The second one's own weights are others, so that it must have taken the first one's.
    second = load(other, lambda weights: adopt_weights(weights, offered[0][0]))
    assert isinstance(first, CudaBackend) and isinstance(second, CudaBackend)
    assert torch.equal(run(first)[0], run(second)[0])
    names = set(offered[0][0].tensors)
    assert "model/layers/0/self_attn/q_proj/weight" in names and "model/embed_tokens/weight" in names
    assert not any("k_proj" in name or "up_proj" in name or "lm_head" in name for name in names)
