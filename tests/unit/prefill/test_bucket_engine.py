"""The engine of a GPU, run on a CPU: KV and hidden states are those of the CPU's engine, in any bucket."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from planned_attention import PlannedAttention
from read_backs import NoReadBack
from torch import Tensor

from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from prefill_worker.engines.cuda import BucketEngine
from xgr_runtime.model.base import ModelBackend, Stage
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.device.device import HostDevice
from xgr_runtime.model.memory.kv_pool import KvPool

PAGE, PAGES, TOKENS = 4, 30, 300
# float32: sums in another order move a hidden state, and the KV of later layers, by about 1e-5.
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def backend(make_checkpoint: MakeCheckpoint) -> ModelBackend:
    return load_backend("transformers", make_checkpoint("qwen3", 2, num_hidden_layers=6), "float32")


def pool_of(backend: ModelBackend) -> KvPool:
    """What nobody has written must not matter."""
    pool = KvPool(backend.identity, PAGES, PAGE)
    pool.k.fill_(torch.nan)
    pool.v.fill_(torch.nan)
    return pool


def attention(rows: int, requests: int) -> PlannedAttention:
    return PlannedAttention(rows, requests, PAGE, causal=True)


@pytest.fixture(scope="module")
def warm(backend: ModelBackend) -> BucketEngine:
    made = BucketEngine(backend, pool_of(backend), HostDevice(), TOKENS, attention)
    made.warm_up()
    return made


@pytest.fixture
def engine(warm: BucketEngine) -> BucketEngine:
    """One for all tests, with a pool that looks as if none had run."""
    warm.pool.k.fill_(torch.nan)
    warm.pool.v.fill_(torch.nan)
    return warm


def parts_of(lengths: list[int], seed: int = 3) -> list[Part]:
    draw = np.random.default_rng(seed)
    pages = draw.permutation(PAGES).astype(np.int32)
    starts = np.cumsum([0, *(-(-n // PAGE) for n in lengths)])
    return [
        Part(draw.integers(0, 97, n).astype(np.int32), pages[a:b])
        for n, (a, b) in zip(lengths, pairwise(starts), strict=True)
    ]


def kv(pool: KvPool, parts: list[Part]) -> Tensor:
    layers = range(pool.identity.layers)
    ends = [part.start + len(part.tokens) for part in parts]
    return torch.cat(
        [
            torch.cat(pool.read(layer, part.pages, 0, end))
            for layer in layers
            for part, end in zip(parts, ends, strict=True)
        ]
    )


def run_both(engine: BucketEngine, batches: list[list[Part]]) -> None:
    """All batches through both engines; their results and what they leave in the pools are the same."""
    plain = CpuPrefillEngine(engine.model, pool_of(engine.model))
    for batch in batches:
        hidden = engine.run(batch, lambda layer: None)
        np.testing.assert_allclose(hidden, plain.run(batch, lambda layer: None), rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(kv(engine.pool, batch), kv(plain.pool, batch), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("lengths", [[1], [7], [20, 1, 33], [64]], ids=str)
def test_a_batch_is_what_the_cpus_engine_makes_of_it(engine: BucketEngine, lengths: list[int]) -> None:
    run_both(engine, [parts_of(lengths)])


@pytest.mark.parametrize("prunes", [True, False], ids=["last tokens", "all tokens"])
def test_the_last_layer_goes_on_with_last_tokens_where_the_model_can(
    backend: ModelBackend, prunes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BucketEngine(backend, pool_of(backend), HostDevice(), TOKENS, attention)
    kept: list[bool] = []
    forward = engine.model.forward

    def spy(tokens: Tensor, positions: Tensor, stage: Stage, keep: Tensor | None = None) -> Tensor:
        kept.append(keep is not None)
        return forward(tokens, positions, stage, keep)

    monkeypatch.setattr(engine.model, "prunes", prunes)
    monkeypatch.setattr(engine.model, "forward", spy)
    engine.buckets = (64,)
    engine.warm_up()
    run_both(engine, [parts_of([20, 1, 33])])
    assert set(kept) == {prunes}


def test_batches_of_different_buckets_leave_each_other_alone(backend: ModelBackend) -> None:
    engine = BucketEngine(backend, pool_of(backend), HostDevice(), TOKENS, attention)
    engine.buckets = (8, 32, TOKENS)
    engine.warm_up()
    first, second = parts_of([5, 3, 29, 40])[:2], parts_of([5, 3, 29, 40])[2:]
    run_both(engine, [second, first, second])


def test_a_prompt_in_parts_is_the_prompt_at_once(engine: BucketEngine) -> None:
    (whole,) = parts_of([50])
    cuts = [0, 1, 18, 50]
    parts = [Part(whole.tokens[a:b], whole.pages, a) for a, b in pairwise(cuts)]
    run_both(engine, [[part] for part in parts])


def test_layers_are_announced_in_order_once_each(engine: BucketEngine) -> None:
    layers: list[int] = []
    engine.run(parts_of([9, 4]), layers.append)
    assert layers == [0, 1, 2, 3, 4, 5]


def test_there_is_time_to_plan_before_the_last_layers(engine: BucketEngine) -> None:
    said: list[object] = []
    engine.run(parts_of([9, 4]), said.append, lambda: said.append("meanwhile"))
    assert said == [0, 1, 2, 3, "meanwhile", 4, 5]


def test_a_batch_is_planned_once_and_another_one_again(
    engine: BucketEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[int] = []
    real = PlannedAttention.plan

    def plan(self: PlannedAttention, *args: Any) -> None:
        planned.append(args[0][-1])
        real(self, *args)

    monkeypatch.setattr(PlannedAttention, "plan", plan)
    first, second = parts_of([9, 4]), parts_of([7, 20], seed=4)
    for parts in (first, first, second):
        engine.prepare(parts)
    engine.run(second, lambda layer: None, lambda: engine.prepare(first))
    assert planned == [13, 27, 13]
    run_both(engine, [first, second])
    assert planned == [13, 27, 13, 27], "the first of these was planned while the one before ran"


def test_a_forward_reads_nothing_back(engine: BucketEngine) -> None:
    graph = engine._graphs[engine.buckets[-1]]
    with NoReadBack():
        graph.forward()
