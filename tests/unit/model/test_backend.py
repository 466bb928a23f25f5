"""Loading: what is refused and in which words, what the self-check catches, and that backends do not mix."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.qwen3 import modeling_qwen3

from xgr_runtime.errors import ModelError
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import PrefillStage

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint of the test's own, to be damaged."""
    return shutil.copytree(make_checkpoint("qwen3", 2), tmp_path / "model")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(folder: Path, name: str = "transformers", dtype: str = "float32") -> str:
    with pytest.raises(ModelError) as caught:
        load_backend(name, folder, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(backend: ModelBackend, tokens: Tensor) -> Tensor:
    pool = KvPool(backend.identity, pages=4, page_size=16)
    stage = PrefillStage(pool, [(0, len(tokens), np.arange(4, dtype=np.int32))])
    return backend.logits(backend.forward(tokens, torch.arange(len(tokens)), stage))


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        ("sglang", "float32", "sglang"),
        ("vllm", "float32", "vllm"),
        ("auto", "float8", "float8"),
        ("auto", "float16", "a GPU only: use --dtype float32 or bfloat16"),
    ],
)
def test_unknown_backend_or_dtype_is_refused(folder: Path, name: str, dtype: str, says: str) -> None:
    assert says in refusal(folder, name, dtype)


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(folder)


def test_a_config_that_ends_the_parser_or_never_ends(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    assert "cannot be read as JSON" in refusal(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # nobody writes to it
    assert "no ordinary file" in refusal(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pickle" in refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged or incomplete" in refusal(folder)


def test_missing_shard_is_named(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(make_checkpoint("qwen3", 2, shard="60KB"), tmp_path / "sharded")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_backend("transformers", folder, "float32")
    shards[1].unlink()
    assert shards[1].name in refusal(folder)


def test_shard_outside_of_the_folder_is_refused(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not a plain file name" in refusal(folder)


def test_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(folder)


def test_tensor_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=72)
    assert "does not load" in refusal(folder)


# (fields of config.json, what the refusal must name); the checkpoint's weights are never reached.
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "custom-code": ({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "auto_map"),
    "unknown-architecture": ({"model_type": "no_such_model"}, "no_such_model"),
    "sliding-window-qwen3": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None},
        "sliding_attention",
    ),
    "sliding-window-mistral": ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window"),
    "chunked-attention": ({"attention_chunk_size": 32}, "attention_chunk_size"),
    "linear-layer-type": (
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "layer_types",
    ),
    "attention-soft-cap": ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "final-soft-cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "gemma2": ({"model_type": "gemma2", "layer_types": None}, "gemma2"),
    "gpt-oss": ({"model_type": "gpt_oss", "layer_types": None}, "gpt_oss"),
    "gpt-oss-sinks-alone": ({"model_type": "gpt_oss", "sliding_window": None}, "sinks"),
    "alibi": ({"alibi": True}, "alibi"),
    "bloom": ({"model_type": "bloom"}, "bloom"),
    "gpt2": ({"model_type": "gpt2"}, "rotary"),
    "t5": ({"model_type": "t5"}, "is_encoder_decoder"),
    "latent-attention": ({"model_type": "deepseek_v3"}, "kv_lora_rank"),
    "quantised": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
    "cohere-logit-scale": ({"model_type": "cohere"}, "logit_scale"),
    "granite-logits-scaling": ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling"),
    "dynamic-rotary": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "rope_type 'dynamic'",
    ),
    "multimodal": ({"model_type": "llava"}, "_config"),
    "bidirectional": ({"is_causal": False}, "is_causal"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_config_is_refused_by_name(folder: Path, case: str) -> None:
    changes, says = UNSUPPORTED[case]
    edit_config(folder, **changes)
    (folder / "model.safetensors").unlink()
    assert says in refusal(folder)


def soft_capped(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention with a soft cap of 2 that no config field tells of."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = 2.0 * torch.tanh(q @ k.transpose(2, 3) * scaling / 2.0) + mask
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2), None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_self_check_catches_a_hidden_soft_cap(
    folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_backend("transformers", folder, dtype)
    monkeypatch.setattr(modeling_qwen3, "eager_attention_forward", soft_capped)
    message = refusal(folder, dtype=dtype)
    assert "Qwen3ForCausalLM" in message and "off by" in message


def test_a_model_that_loads_but_does_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no such\nargument")

    monkeypatch.setattr(modeling_qwen3.Qwen3Model, "forward", fails)
    assert "Qwen3ForCausalLM does not run: ValueError: no such argument" in refusal(folder)


def test_self_check_catches_rows_that_mix_outside_of_attention(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(self: nn.Module, x: Tensor) -> Tensor:
        earlier = torch.cat([x[:, :1] * 0, x[:, :-1]], dim=1)
        return inner(self, x + earlier)  # type: ignore[arg-type]

    inner = modeling_qwen3.Qwen3MLP.forward
    monkeypatch.setattr(modeling_qwen3.Qwen3MLP, "forward", shifted)
    assert "off by" in refusal(folder)


def test_self_check_catches_a_layer_without_attention(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def skips(self: nn.Module, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return (hidden_states, None) if self.layer_idx == 2 else inner(self, hidden_states, **kwargs)

    inner = modeling_qwen3.Qwen3Attention.forward
    monkeypatch.setattr(modeling_qwen3.Qwen3Attention, "forward", skips)
    assert "2 of 3 layers" in refusal(folder)


def test_attention_that_drops_keyword_arguments_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drops(self: nn.Module, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        kwargs.pop("xgr_stage", None)
        return inner(self, hidden_states, **kwargs)

    inner = modeling_qwen3.Qwen3Attention.forward
    monkeypatch.setattr(modeling_qwen3.Qwen3Attention, "forward", drops)
    assert "keyword arguments" in refusal(folder)


@pytest.mark.parametrize("extra", ["softcap", "s_aux", "sliding_window"])
def test_attention_that_asks_for_more_is_refused(
    folder: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(name: str, default: Any) -> Callable[..., tuple[Tensor, None]]:
        attention = find(name, default)
        return lambda *args, **kwargs: attention(*args, **{**kwargs, extra: torch.ones(4)})

    find = modeling_qwen3.ALL_ATTENTION_FUNCTIONS.get_interface  # type: ignore[attr-defined]
    monkeypatch.setattr(modeling_qwen3.ALL_ATTENTION_FUNCTIONS, "get_interface", function)  # type: ignore[attr-defined]
    assert extra in refusal(folder)


def test_logits_are_float32_tied_or_not(make_checkpoint: MakeCheckpoint) -> None:
    for tied in (True, False):
        folder = make_checkpoint("qwen3", 2, tie_word_embeddings=tied)
        backend = load_backend("transformers", folder, "bfloat16")
        assert backend.logits(torch.randn(3, 48, dtype=torch.bfloat16)).dtype == torch.float32
        assert backend.identity.vocab == 97


def test_two_backends_in_two_threads_do_not_mix(make_checkpoint: MakeCheckpoint) -> None:
    backends = [
        load_backend("transformers", make_checkpoint("qwen3", 2), "float32"),
        load_backend("transformers", make_checkpoint("qwen3", 2, seed=1), "float32"),
    ]
    tokens = torch.arange(40)
    alone = [run(backend, tokens) for backend in backends]
    assert not torch.allclose(alone[0], alone[1], atol=0.1)
    again: list[list[Tensor]] = [[], []]

    def repeat(index: int) -> None:
        again[index] = [run(backends[index], tokens) for _ in range(20)]

    threads = [threading.Thread(target=repeat, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for index in (0, 1):
        assert len(again[index]) == 20
        for logits in again[index]:
            # Same weights and rows; another number of threads may split a product otherwise.
            torch.testing.assert_close(logits, alone[index], rtol=0, atol=2e-5)


def test_weights_hash_names_content(make_checkpoint: MakeCheckpoint, folder: Path, tmp_path: Path) -> None:
    first = load_backend("transformers", folder, "float32").identity.weights_hash
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_backend("transformers", copy, "float32").identity.weights_hash == first
    other_weights = load_backend(
        "transformers", make_checkpoint("qwen3", 2, seed=1), "float32"
    ).identity.weights_hash
    edit_config(copy, rms_norm_eps=1e-5)
    other_config = load_backend("transformers", copy, "float32").identity.weights_hash
    assert len({first, other_weights, other_config}) == 3
