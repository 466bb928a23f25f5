"""Packed prefill and cascade decode against Hugging Face's own forward over whole sequences."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from beams import PAGE, TAIL, Beams, decode, make_requests, prefill
from pairs import by_pairs
from torch import Tensor
from transformers import AutoModelForCausalLM

from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.stages import PrefillStage

DEPTH = TAIL + 2

# float32: the same sums in another order; logits of a few units over three layers move by about 1e-5.
# bfloat16: steps of 2^-8 at each of some 30 roundings per row, against a float32 oracle.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}


def oracle(folder: Path) -> Callable[[list[list[int]]], Tensor]:
    """Hugging Face in float32: sequences of one length -> logits of all their tokens."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def logits(sequences: list[list[int]]) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(input_ids=torch.tensor(sequences), use_cache=False).logits
            return result

    return logits


@pytest.mark.in_turns("family")
@by_pairs(
    {
        "family": ["qwen3", "qwen2", "llama"],
        "kv_heads": [4, 2, 1],
        "dtype, kernels": [("float32", "cpu"), ("bfloat16", "cpu"), ("float32", "reference")],
    }
)
def test_beams_equal_whole_sequences(
    make_checkpoint: Callable[..., Path], family: str, kv_heads: int, dtype: str, kernels: str
) -> None:
    folder = make_checkpoint(family, kv_heads)
    backend, want = load_backend("transformers", folder, dtype), oracle(folder)
    draw, vocab = np.random.default_rng(7), backend.identity.vocab
    pool = KvPool(backend.identity, pages=10, page_size=PAGE)
    tail = TailKv(backend.identity, tokens=TAIL, rows=24)
    requests = make_requests(vocab, draw)
    for request, logits in zip(requests, prefill(backend, pool, requests), strict=True):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, want([request.prompt.tolist()])[0], rtol=0, atol=TOLERANCE[dtype])

    # The third request joins a step later, so that levels differ within a forward; widths grow and shrink.
    schedule = [[(0, 3), (1, 5)], [(0, 7), (1, 13), (2, 1)], [(0, 2), (1, 4), (2, 4)], [(2, 3)]]
    for step in schedule:
        for index, width in step:
            requests[index].fork(width, vocab, draw)
        live = [requests[index] for index, _ in step]
        got = decode(backend, pool, tail, live, kernels).split([width for _, width in step])
        for request, logits in zip(live, got, strict=True):
            sequences = [request.prompt.tolist() + beam for beam in request.tokens]
            torch.testing.assert_close(logits, want(sequences)[:, -1], rtol=0, atol=TOLERANCE[dtype])
    assert requests[2].level == DEPTH - 1


@pytest.mark.in_turns("cuts")
@by_pairs(
    {
        "cuts": [(0, 31, 32), (0, 1, 32), (0, 8, 32), (0, 9, 15, 16, 32)],
        "dtype": ["float32", "bfloat16"],
        "kernels": ["cpu", "reference"],
    }
)
def test_a_prompt_in_parts_equals_one_forward(
    make_checkpoint: Callable[..., Path], cuts: tuple[int, ...], dtype: str, kernels: str
) -> None:
    """Each part runs beside a whole prompt, and only its own tokens are computed and written."""
    backend = load_backend("transformers", make_checkpoint("qwen3", 2), dtype)
    draw = np.random.default_rng(2)
    whole, parts = (KvPool(backend.identity, pages=12, page_size=PAGE) for _ in range(2))
    mate = make_requests(backend.identity.vocab, draw)[0]
    prompt = torch.from_numpy(draw.integers(0, backend.identity.vocab, 32))
    pages = draw.permutation(np.setdiff1d(np.arange(12), mate.pages))[:4].astype(np.int32)
    (want,) = prefill(backend, whole, [Beams(prompt, pages, 0)])
    got = []
    for start, end in pairwise(cuts):
        before = parts.k.clone()
        spans = [(0, end - start, pages), (end - start, len(mate.prompt), mate.pages)]
        stage = PrefillStage(parts, spans, prefixes=[start, 0], backend=kernels)
        positions = torch.cat([torch.arange(start, end), torch.arange(len(mate.prompt))])
        hidden = backend.forward(torch.cat([prompt[start:end], mate.prompt]), positions, stage)
        got.append(backend.logits(hidden[: end - start]))
        changed = (parts.k != before).flatten(3).any(-1)
        changed[:, mate.pages] = False
        assert changed.sum() == backend.identity.layers * (end - start)
    torch.testing.assert_close(torch.cat(got), want, rtol=0, atol=TOLERANCE[dtype])
    for layer in range(backend.identity.layers):
        for ours, theirs in zip(
            parts.read(layer, pages, 0, 32), whole.read(layer, pages, 0, 32), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


def test_layers_are_announced_when_their_kv_is_in_the_pool(make_checkpoint: Callable[..., Path]) -> None:
    backend = load_backend("transformers", make_checkpoint("qwen3", 2), "float32")
    pool = KvPool(backend.identity, pages=4, page_size=PAGE)
    seen: list[tuple[int, bool, bool]] = []

    def on_layer(layer: int) -> None:
        later = pool.k[layer + 1 :]
        seen.append((layer, bool(pool.k[layer].flatten(0, 1)[:11].abs().sum(-1).all()), bool(later.any())))

    stage = PrefillStage(pool, [(0, 11, np.array([0, 1], dtype=np.int32))], on_layer)
    backend.forward(torch.arange(11), torch.arange(11), stage)
    assert seen == [(0, True, False), (1, True, False), (2, True, False)]


def test_batch_composition_changes_nothing(make_checkpoint: Callable[..., Path]) -> None:
    backend = load_backend("transformers", make_checkpoint("llama", 2), "float32")
    pool = KvPool(backend.identity, pages=10, page_size=PAGE)
    requests = make_requests(backend.identity.vocab, np.random.default_rng(3))
    together = prefill(backend, pool, requests)
    for request, logits in zip(requests, together, strict=True):
        # float32 products of another shape may sum in another order.
        torch.testing.assert_close(prefill(backend, pool, [request])[0], logits, rtol=0, atol=2e-5)
