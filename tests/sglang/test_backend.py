"""SGLang's layers against Hugging Face's, through the same stages: prompts, beams, KV, refusals."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beams import PAGE, PAGES, Run
from checkpoints import MakeCheckpoint
from read_backs import forward_without_read_back
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.models import qwen2
from torch import Tensor, nn

from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_runtime.errors import ModelError
from xgr_runtime.model.backends.huggingface import open_checkpoint
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.sglang.backend import SGLangBackend, _StageAttention
from xgr_runtime.model.sglang.startup import start_model
from xgr_runtime.model.stages import PrefillStage

Case = tuple[str, int, dict[str, object]]  # family, KV heads (of 4), and what else `make_checkpoint` takes

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

RUNS: dict[str, Case] = {
    **{f"{family}-Hkv=2": (family, 2, {}) for family in ("qwen3", "qwen2", "llama")},
    "qwen3-Hkv=1": ("qwen3", 1, {}),
    "llama-Hkv=4": ("llama", 4, {}),
    "qwen3-D=24": ("qwen3", 2, {"head_dim": 24}),
    "llama-D=16": ("llama", 2, {"head_dim": 16}),
    "qwen3-tied": ("qwen3", 2, {"tie_word_embeddings": True}),
    "qwen2-Hkv=4-tied": ("qwen2", 4, {"tie_word_embeddings": True}),
    "llama-Hkv=1-tied": ("llama", 1, {"tie_word_embeddings": True}),
    "qwen3-attention-bias": ("qwen3", 2, {"attention_bias": True}),
    "llama-attention-bias": ("llama", 2, {"attention_bias": True}),
    "qwen3-saved-in-bfloat16": ("qwen3", 2, {"dtype": "bfloat16"}),
    "qwen3-in-shards": ("qwen3", 2, {"shard": "60KB"}),
    "qwen3-V=128": ("qwen3", 2, {"vocab_size": 128}),  # nothing to pad
    "llama-rope=llama3": ("llama", 2, {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope=linear": (
        "llama",
        2,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "qwen2-rope=yarn": ("qwen2", 2, {"rope_parameters": YARN_ROPE}),
    "mistral": ("mistral", 2, {"sliding_window": None}),
    "phi3": ("phi3", 2, {}),
    "phi": ("phi", 4, {"partial_rotary_factor": 0.5}),
    "gemma-gelu": ("gemma", 2, {"head_dim": 16, "hidden_act": "gelu"}),
    "olmo": ("olmo", 4, {}),
    "olmo2": ("olmo2", 2, {}),
    "granite": (
        "granite",
        2,
        {"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    ),
    "starcoder2": ("starcoder2", 2, {"sliding_window": None}),
    "glm4": ("glm4", 2, {"head_dim": 12}),
    "arcee": ("arcee", 2, {}),
    "cohere": ("cohere", 2, {"logit_scale": 1.0}),
    "persimmon": ("persimmon", 4, {}),
    "qwen3_moe": ("qwen3_moe", 2, {"num_experts": 4, "norm_topk_prob": True, "head_dim": 12, **EXPERTS}),
    "mixtral": ("mixtral", 2, {"num_local_experts": 4, "sliding_window": None, **EXPERTS}),
    "olmoe": ("olmoe", 4, {"num_experts": 4, **EXPERTS}),
    "granitemoe": ("granitemoe", 2, {"num_local_experts": 4, **EXPERTS}),
    "glm4_moe": (
        "glm4_moe",
        2,
        {
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "head_dim": 12,
            **EXPERTS,
        },
    ),
}
MAIN = ("qwen3-Hkv=2", "qwen2-Hkv=2", "llama-Hkv=2")
ANGLES = ("qwen3-Hkv=2", "llama-rope=llama3", "llama-rope=linear", "qwen2-rope=yarn", "phi3")

# float32: sums in another order, over three layers and logits of a few units: some 1e-6 where they differ.
# bfloat16: steps of 2^-8 at each of some 30 roundings, and SGLang adds the residual before it rounds.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}

REFUSED: dict[str, tuple[Case, str]] = {
    "sliding-window": (("mistral", 2, {"sliding_window": 8}), "sliding_window=8"),
    "activation-of-its-own": (("gemma", 2, {"head_dim": 16}), "GemmaForCausalLM .* off by"),
    "bias-that-it-drops": (("llama", 2, {"mlp_bias": True}), "LlamaForCausalLM .* off by"),
    "heads-that-it-ignores": (("olmo", 2, {}), "OlmoForCausalLM .* attention got"),
    "wrapped-model": (("seed_oss", 2, {"head_dim": 12}), "no layers of its own"),
    "needs-triton": (("qwen2_moe", 2, {"num_experts": 4, **EXPERTS}), "cannot run Qwen2MoeForCausalLM"),
}


def both(make: MakeCheckpoint, case: Case, dtype: str) -> tuple[ModelBackend, ModelBackend]:
    family, kv_heads, config = case
    folder = make(family, kv_heads, **config)
    return load_backend("sglang", folder, dtype), load_backend("transformers", folder, dtype)


@pytest.mark.in_turns("case", share=4)
@pytest.mark.parametrize("case", RUNS)
def test_prompts_and_beams_equal_transformers(
    make_checkpoint: MakeCheckpoint, case: str, record_property: Callable[[str, object], None]
) -> None:
    ours, theirs = both(make_checkpoint, RUNS[case], "float32")
    assert (ours.name, theirs.name) == ("sglang", "transformers")
    # What the wire compares: a prompt of one kind of worker is continued by the other.
    assert ours.identity == theirs.identity
    difference = Run(ours).difference(Run(theirs))
    record_property("difference", difference)
    print(f"{case}: {difference:.1e}")
    assert difference <= TOLERANCE["float32"]
    if case in ANGLES:
        # SGLang looks angles up in a table: it must reach as far as the config says.
        torch.testing.assert_close(
            at_the_end(ours), at_the_end(theirs), rtol=0, atol=TOLERANCE["float32"], msg="the last positions"
        )


def at_the_end(backend: ModelBackend, count: int = 16) -> Tensor:
    """Logits of tokens at the last positions."""
    tokens = torch.arange(count)
    positions = torch.arange(backend.max_positions - count, backend.max_positions)
    stage = PrefillStage(KvPool(backend.identity, PAGES, PAGE), [(0, count, np.arange(2, dtype=np.int32))])
    return backend.logits(backend.forward(tokens, positions, stage))


@pytest.mark.parametrize("case", ["qwen3_moe", "granitemoe", "glm4_moe"])
def test_experts_load_in_bfloat16(make_checkpoint: MakeCheckpoint, case: str) -> None:
    """Rounding sends some tokens to another expert; the self-check must not take that for a fault."""
    ours, theirs = both(make_checkpoint, RUNS[case], "bfloat16")
    assert ours.identity == theirs.identity


@pytest.mark.in_turns("case")
@pytest.mark.parametrize(("case", "dtype"), [*((case, "bfloat16") for case in MAIN), (MAIN[0], "float32")])
def test_either_kind_continues_the_prompts_of_the_other(
    make_checkpoint: MakeCheckpoint, case: str, dtype: str
) -> None:
    ours, theirs = both(make_checkpoint, RUNS[case], dtype)
    assert ours.identity == theirs.identity
    own, foreign = Run(ours), Run(theirs)
    assert own.difference(foreign) <= TOLERANCE[dtype]
    assert own.pool.k.dtype == getattr(torch, dtype) and own.logits[0].dtype == torch.float32
    assert Run(ours, prompts_from=foreign).difference(foreign) <= TOLERANCE[dtype]
    assert Run(theirs, prompts_from=own).difference(own) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", MAIN)
def test_a_forward_reads_nothing_back_and_its_last_layer_runs_for_a_prompts_last_token_alone(
    make_checkpoint: MakeCheckpoint, case: str
) -> None:
    family, kv_heads, settings = RUNS[case]
    model = load_backend("sglang", make_checkpoint(family, kv_heads, **settings), "float32")
    forward_without_read_back(model)  # so it may be captured
    assert model.prunes
    tokens = np.random.default_rng(5).integers(3, model.identity.vocab, 21).astype(np.int32)
    parts = [
        Part(tokens[:13], np.array([7, 2, 9, 4], np.int32)),
        Part(tokens[13:], np.array([0, 3], np.int32)),
    ]
    pools = [KvPool(model.identity, 16, 4) for _ in range(2)]
    hidden = []
    for pool, pruned in zip(pools, (True, False), strict=True):
        model.prunes = pruned
        hidden.append(CpuPrefillEngine(model, pool).run(parts, lambda layer: None))
    # float32: one row's sums come in another order than those of many rows
    np.testing.assert_allclose(hidden[0], hidden[1], rtol=0, atol=2e-5)
    assert torch.equal(pools[0].k, pools[1].k) and torch.equal(pools[0].v, pools[1].v)


def test_the_checkpoint_of_the_test_data(checkpoint: Path) -> None:
    ours, theirs = (
        load_backend("auto", checkpoint, "float32"),
        load_backend("transformers", checkpoint, "float32"),
    )
    assert (ours.name, theirs.name) == ("sglang", "transformers")
    assert Run(ours).difference(Run(theirs)) <= TOLERANCE["float32"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_is_refused_in_one_line(make_checkpoint: MakeCheckpoint, name: str) -> None:
    (family, kv_heads, config), says = REFUSED[name]
    with pytest.raises(ModelError, match=says) as caught:
        load_backend("sglang", make_checkpoint(family, kv_heads, **config), "float32")
    assert "\n" not in str(caught.value)


def test_a_refusal_leaves_the_process_able_to_run_another(make_checkpoint: MakeCheckpoint) -> None:
    for case in (REFUSED["needs-triton"][0], REFUSED["wrapped-model"][0]):
        with pytest.raises(ModelError, match="--model-backend transformers"):
            both(make_checkpoint, case, "float32")
    ours, theirs = both(make_checkpoint, RUNS["qwen3-Hkv=2"], "float32")
    assert Run(ours).difference(Run(theirs)) <= TOLERANCE["float32"]


def test_self_check_catches_layers_that_compute_something_else(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(self: nn.Module, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        earlier = torch.cat([x[:1] * 0, x[:-1]])
        result: Tensor = inner(self, x + earlier, *args, **kwargs)
        return result

    inner = qwen2.Qwen2MLP.forward
    monkeypatch.setattr(qwen2.Qwen2MLP, "forward", shifted)
    with pytest.raises(ModelError, match="off by"):
        load_backend("sglang", make_checkpoint("qwen2", 2), "float32")


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("logit_cap", 30.0, "caps its scores"),
        ("sliding_window_size", 64, "sees 64 tokens only"),
        ("is_cross_attention", True, "not causal self-attention"),
        ("attn_type", AttentionType.ENCODER_ONLY, "not causal self-attention"),
        ("v_head_dim", 8, "different sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_a_layer_that_needs_more_is_refused(
    make_checkpoint: MakeCheckpoint, attribute: str, value: object, says: str
) -> None:
    folder = make_checkpoint("qwen3", 2)
    checkpoint, model = open_checkpoint(folder), start_model(folder, "float32")
    SGLangBackend(model, checkpoint, "float32")
    layers = [layer for layer in model.modules() if isinstance(layer, RadixAttention)]
    setattr(layers[1], attribute, value)
    with pytest.raises(ModelError, match=f"layer 1 .*{says}"):
        SGLangBackend(model, checkpoint, "float32")


class Echo:
    """A stage that gives back what was asked; the test looks at what arrives."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return q


@pytest.mark.parametrize("extra", ["sinks", "k_rope"])
def test_an_attention_that_is_asked_for_more_is_refused(extra: str) -> None:
    layer = RadixAttention(4, 8, 0.3, num_kv_heads=2, layer_id=5)
    q, k, v = torch.ones(3, 32), torch.ones(3, 2, 8), torch.ones(3, 2, 8)
    attention = _StageAttention(Echo())
    assert attention.forward_decode(q, k, v, layer, None).shape == (3, 32)
    with pytest.raises(ModelError, match=f"layer 5 asks its attention for {extra}"):
        attention.forward_decode(q, k, v, layer, None, **{extra: torch.ones(4)})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="layer 5 shares the keys"):
        attention.forward_decode(q, None, None, layer, None)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_are_float32_and_not_padded(make_checkpoint: MakeCheckpoint, tied: bool) -> None:
    folder = make_checkpoint("qwen3", 2, tie_word_embeddings=tied)
    backend = load_backend("sglang", folder, "bfloat16")
    logits = backend.logits(torch.randn(3, 48, dtype=torch.bfloat16))
    assert (logits.dtype, logits.shape) == (torch.float32, (3, 97))


def test_two_threads_do_not_mix(make_checkpoint: MakeCheckpoint) -> None:
    backend = load_backend("sglang", make_checkpoint("qwen3", 2), "float32")
    alone = Run(backend)
    again: list[Any] = []

    def repeat() -> None:
        again.extend(Run(backend).difference(alone) for _ in range(3))

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    # Same weights and rows; another number of threads may split a product otherwise.
    assert len(again) == 6 and max(again) <= 2e-5


# What a start must leave as it was; printed by a process of its own, after its first forward.
START = """
import json, os, sys, tempfile
from pathlib import Path
import psutil, torch
torch.set_num_threads(1)
import xgr_runtime.model.backends.huggingface  # transformers has torch set a variable of its own
environ, scratch = dict(os.environ), set(os.listdir(tempfile.gettempdir()))
from xgr_runtime.model.choice import load_backend
backend = load_backend("sglang", Path(sys.argv[1]), "float32")
process = psutil.Process()
print(json.dumps({
    "threads": torch.get_num_threads(),
    "environ": [name for name in os.environ if os.environ[name] != environ.get(name)],
    "scratch": sorted(set(os.listdir(tempfile.gettempdir())) - scratch),
    "children": len(process.children()),
    "listens": sorted({c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"}),
}))
"""


def test_two_workers_start_at_once_and_leave_nothing(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", START, str(make_checkpoint("qwen3", 2))]
    (tmp_path / "scratch").mkdir()
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "scratch")}
    workers = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
        for _ in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert (worker.returncode, err) == (0, "")
        found = json.loads(out)
        assert found["threads"] == 1 and found["children"] == 0
        assert found["environ"] == []
        assert found["scratch"] == []
        assert found["listens"] in ([], ["127.0.0.1"])
