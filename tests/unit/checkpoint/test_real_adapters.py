"""Adapters of public projects and of a reported failure, where the folder of real data has them: the scores
that Hugging Face's `generate` gave with peft."""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from xgr_runtime.cache.merged import merged_checkpoint

DATA = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent")
CASE = DATA / "cases/05-adapter"
MODEL = DATA / "cases/01-no-begin-token/model"
KIT = DATA / "kits/lcrec"
_models: Any = AutoModelForCausalLM


@torch.inference_mode()
def scores(folder: Path, prompt: list[int], beams: list[list[int]]) -> torch.Tensor:
    """Sums of log-probabilities of each beam's tokens behind the prompt, [W]."""
    model = _models.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([[*prompt, *beam] for beam in beams])  # [W, L + T]
    scored = len(tokens[0]) - len(prompt)
    rows = model(tokens, logits_to_keep=scored + 1).logits[:, :-1].log_softmax(-1)
    sums: torch.Tensor = rows.gather(-1, tokens[:, len(prompt) :, None])[..., 0].sum(-1)
    return sums


@pytest.mark.skipif(not CASE.is_dir(), reason="needs XGR_TEST_DATA with cases/")
@pytest.mark.parametrize("place", ["beside", "inside", "alone"])
def test_the_reported_one(place: str, tmp_path: Path) -> None:
    right = json.loads((CASE / "expected.json").read_text())
    model = CASE / "adapter" if place == "alone" else tmp_path / "model"
    if place != "alone":
        shutil.copytree(MODEL, model, copy_function=shutil.copyfile)
        model.chmod(0o700)
        inside = model / "adapter" if place == "inside" else model
        shutil.copytree(CASE / "adapter", inside, copy_function=shutil.copyfile, dirs_exist_ok=True)
        model.chmod(0o700)
    base = str(MODEL) if place == "alone" else ""
    with merged_checkpoint(model, base, tmp_path / "cache") as folder:
        found = scores(folder, right["prompt_ids"], [tokens for tokens, _ in right["beams"]])
    assert found.tolist() == pytest.approx([score for _, score in right["beams"]], abs=3e-5)


@pytest.mark.skipif(not KIT.is_dir(), reason="needs XGR_TEST_DATA with kits/")
def test_a_projects_own(tmp_path: Path) -> None:
    """A base in float16, products and whole weights in bfloat16 for a larger vocabulary, three of a name."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
        for file in (KIT / name).iterdir():
            content = file.read_bytes()
            packed = file.suffix == ".xz"
            target = tmp_path / name / (file.stem if packed else file.name)
            target.write_bytes(lzma.decompress(content) if packed else content)
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / "adapter" / name).unlink()  # of a tokenizer whose vocabulary the kit keeps elsewhere
    cases = [json.loads(line) for line in (KIT / "cases_lora.jsonl").read_text().splitlines()[:2]]
    with merged_checkpoint(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "cache") as folder:
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == 32_930
        for case in cases:
            beams = [[*tokens[:4], 2] for tokens, _ in case["beams"]]  # the end token is scored, too
            found = scores(folder, case["prompt_ids"], beams) / 5
            assert found.tolist() == pytest.approx([score for _, score in case["beams"]], abs=3e-4)
