"""Every file in a checkpoint's folder is used, of no consequence, said, or refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MakeCheckpoint
from safetensors.torch import load_file, save_file

from xgr_runtime.checkpoint import (
    INDEX,
    SINGLE,
    check_globbed,
    passed_over,
    read_config,
    saved_dtype,
    weight_files,
)
from xgr_runtime.errors import ModelError

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 5}))
    save_file({"model.embed_tokens.weight": torch.ones(5, 2)}, tmp_path / SINGLE)
    return tmp_path


HARMLESS = (
    "README.md LICENSE LICENSE.txt .gitattributes training_args.bin trainer_state.json optimizer.pt latest "
    "rng_state.pth rng_state_0.pth all_results.json loss.png checkpoint-500 global_step12 zero_to_fp32.py "
    "scheduler.pt "
    "tokenizer.json vocab.json merges.txt added_tokens.json special_tokens_map.json tokenizer_config.json "
    "chat_template.jinja chat_template.json additional_chat_templates generation_config.json optimizer.bin "
    "events.out.tfevents.1 random_states_0.pkl"
)


def test_what_trainers_and_hubs_leave_is_not_worth_a_line(folder: Path) -> None:
    for name in HARMLESS.split():
        (folder / name).touch()
    assert passed_over(folder) == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["pytorch_model.bin"],
            "pytorch_model.bin are weights that are not loaded: .*only model.safetensors is",
        ),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json are weights"),
        (["consolidated.safetensors"], "consolidated.safetensors are weights"),
        (["model.fp16.safetensors"], "model.fp16.safetensors are weights"),
        ([SHARD], f"{SHARD} are weights"),
        (
            ["model.gguf", "tf_model.h5", "flax_model.msgpack"],
            "flax_model.msgpack, model.gguf, tf_model.h5 are",
        ),
        ([f"part-{n}.ckpt" for n in range(9)], "part-4.ckpt and 4 more are weights"),
        (["modeling_x.py"], "modeling_x.py are code, which is never run"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_not_loaded_is_said(names: list[str], said: str, folder: Path) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")
    (line,) = passed_over(folder)
    assert re.search(said, line), line


@pytest.mark.parametrize("name", ["adapters/first", "lora", "v2-adapter"])
def test_adapters_in_folders_of_another_name_are_said(name: str, folder: Path) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text("{}")
    (line,) = passed_over(folder)
    assert f"{name.partition('/')[0]} hold adapters that are not applied" in line
    assert f"--base-model-path {folder}" in line


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("modules.json", "[]", "an embedding model of sentence-transformers"),
        ("quantize_config.json", "{}", "quantize_config.json says that the weights are quantised"),
        ("hf_quant_config.json", "{}", "hf_quant_config.json says"),
        ("quant_config.json", "{}", "quant_config.json says"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, r"are quantised \(fp8\)"),
        (
            "config.json",
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            r"\(compressed-tensors\)",
        ),
        ("config.json", {"quantization_config": {"load_in_4bit": True}}, r"\(no method is named\)"),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.M"}}, "code from the checkpoint"),
        ("config.json", "[1]", "must hold a JSON object"),
        ("config.json", "{}", "no model_type"),
    ],
)
def test_what_makes_another_model_is_refused(name: str, content: Any, said: str, folder: Path) -> None:
    text = content if isinstance(content, str) else json.dumps({"model_type": "qwen3", **content})
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        read_config(folder)


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2, dtype=torch.int8)},
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)},
        {"lm_head.weight": torch.zeros(5, 2, dtype=torch.uint8)},
    ],
    ids=["int8", "float8", "packed"],
)
def test_numbers_that_need_scales_are_refused(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """A library would take them for the weights themselves."""
    save_file(tensors, folder / SINGLE)
    with pytest.raises(ModelError, match=r"is saved as .*, so the weights are quantised"):
        weight_files(folder)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("model.embed_tokens.weight", 4), ("model.embed_tokens.weight", 8), ("lm_head.weight", 6)],
)
def test_rows_that_config_does_not_know(name: str, rows: int, folder: Path) -> None:
    save_file({name: torch.ones(rows, 2)}, folder / SINGLE)
    with pytest.raises(ModelError, match=f"{name} has {rows} rows, config.json says vocab_size 5"):
        weight_files(folder)


@pytest.mark.parametrize("other", [0.0, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_beside_an_embedding_that_is_said_to_be_it(
    tied: bool, other: float, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"model_type": "qwen3", "vocab_size": 5, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    ones = torch.ones(5, 2)
    save_file({"model.embed_tokens.weight": ones, "lm_head.weight": ones * other}, folder / SINGLE)
    with caplog.at_level(logging.WARNING):
        weight_files(folder)
    assert ("older versions take the embedding for both" in caplog.text) is (tied and not other)


def _stray(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "consolidated.safetensors")


def _variant(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / "model.fp16.safetensors")


def _stale_index(folder: Path) -> None:
    shutil.copy(folder / SINGLE, folder / SHARD)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": SHARD}}))


def _lost_shards(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": SHARD}}))


@pytest.mark.parametrize("change", [_stray, _variant, _stale_index, _lost_shards])
def test_files_that_sglang_alone_would_load(change: Callable[[Path], None], folder: Path) -> None:
    check_globbed(folder)
    change(folder)
    with pytest.raises(ModelError, match="SGLang would load other weights"):
        check_globbed(folder)


def test_sglang_follows_an_index_as_we_do(folder: Path) -> None:
    (folder / SINGLE).rename(folder / SHARD)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": SHARD}}))
    (folder / "consolidated.safetensors").write_bytes(b"x")
    check_globbed(folder)
    assert weight_files(folder) == [folder / SHARD]


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float32"),
        ({}, "float32"),
    ],
)
def test_number_types_in_configs_of_all_ages(fields: dict[str, str], dtype: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **fields}))
    assert saved_dtype(folder, "cpu") == dtype


def test_weights_that_no_model_has_are_said(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from xgr_runtime.model.backends.huggingface import load_eager, open_checkpoint

    folder = tmp_path / "model"
    shutil.copytree(make_checkpoint("llama", 2), folder)
    weights = load_file(folder / SINGLE)
    bias = {"model.layers.1.self_attn.q_proj.bias": torch.ones(48)}
    save_file(weights | bias, folder / SINGLE, {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_eager(open_checkpoint(folder), "float32")
    assert "1 saved weights are no part of the model" in caplog.text and "q_proj.bias" in caplog.text
