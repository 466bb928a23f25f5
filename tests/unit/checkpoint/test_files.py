"""Files beside a checkpoint's weights: what changes the model is named, and Hugging Face's choice is ours."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from xgr_runtime.checkpoint import INDEX, SINGLE, not_applied, read_config, weight_files, weights_hash
from xgr_runtime.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    save_file({"w": torch.ones(2)}, str(tmp_path / SINGLE))
    return tmp_path


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_not_passed_over(name: str, alone: bool, folder: Path) -> None:
    (folder / name).write_text("{}")
    if alone:
        (folder / "config.json").unlink()
        (folder / SINGLE).unlink()
    with pytest.raises(ModelError, match=f"{name} changes what the model is.*merge_and_unload"):
        read_config(folder)


def test_one_file_comes_before_shards_that_were_left(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = weights_hash(folder, weight_files(folder))
    shard = "model-00001-of-00001.safetensors"
    save_file({"w": torch.zeros(2)}, str(folder / shard))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with caplog.at_level(logging.WARNING):
        files = weight_files(folder)
    assert files == [folder / SINGLE] and weights_hash(folder, files) == alone
    assert f"{INDEX} is not" in caplog.text
    (folder / SINGLE).unlink()
    assert weight_files(folder) == [folder / shard]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, []),
        ({"do_sample": False, "top_k": 50, "temperature": 1.0, "eos_token_id": 3, "max_length": 9}, []),
        ({"do_sample": True, "top_k": 20}, ["do_sample=True", "top_k=20"]),
        ({"repetition_penalty": 1.05}, ["repetition_penalty=1.05"]),
        ({"suppress_tokens": [1]}, ["suppress_tokens=[1]"]),
    ],
)
def test_what_a_generation_config_asks_in_vain(fields: dict[str, Any], said: list[str], folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    assert not_applied(folder) == said


def test_without_a_generation_config(folder: Path) -> None:
    assert not_applied(folder) == []
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(ModelError, match=r"generation_config.json cannot be read as JSON"):
        not_applied(folder)
