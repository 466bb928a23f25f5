"""A roofline is arithmetic that can be done by hand, and its file is checked before anything is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xgr_runtime.errors import ModelError
from xgr_runtime.scheduling.roofline import (
    DEVICES,
    DeviceNumbers,
    ModelNumbers,
    Roofline,
    Simulation,
    model_numbers,
    read_simulation,
    roofline_of,
)

# One layer: attention 8 * 4 * (2 * 2 + 2 * 1) = 192 weights, three products of 8 * 16: 384. Head 8 * 100.
MODEL = ModelNumbers(layers=10, hidden=8, intermediate=16, q_heads=2, kv_heads=1, head_dim=4, vocab=100)
CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 10,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 100,
}


def test_arithmetic_or_memory_whichever_is_longer() -> None:
    slow_arithmetic = Roofline(DeviceNumbers("a", 1e3, 1e12, 0.0, 0.5), MODEL)
    flops = 2 * (10 * 576 * 7 + 800 * 2) + 4 * 10 * 2 * 4 * 30
    assert slow_arithmetic.seconds(7, 30, 9, 2) == pytest.approx(flops / 1e3 / 0.5)
    slow_memory = Roofline(DeviceNumbers("m", 1e15, 1e3, 0.25, 1.0), MODEL)
    read = 2 * (10 * 576 + 800) + 9 * (2 * 2 * 10 * 1 * 4)
    assert slow_memory.seconds(7, 30, 9, 2) == pytest.approx(10 * 0.25 + read / 1e3)
    without_logits = 2 * 10 * 576 + 9 * 160
    assert slow_memory.seconds(7, 30, 9, 0) == pytest.approx(10 * 0.25 + without_logits / 1e3)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "simulation.json").write_text('{"device": "H200", "model": ".", "slower": 3}')
    found = read_simulation(tmp_path)
    assert found == Simulation("H200", ".", 3.0) and model_numbers(tmp_path) == MODEL
    roofline = roofline_of(found, tmp_path)
    assert roofline.device is DEVICES["H200"] and roofline.model == MODEL


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "simulation.json cannot be read"),
        ({"device": "H300", "model": "."}, "no numbers of a device 'H300': use one of H200, "),
        ({"device": "H200"}, "missing required field `model`"),
        ({"device": "H200", "model": ".", "faster": 2}, "unknown field `faster`"),
        ({"device": {"name": "x", "flops": 0, "bytes_per_second": 1}, "model": "."}, "> 0.0"),
        ({"device": "H200", "model": "nowhere"}, "there is no folder nowhere"),
        ({"device": "H200", "model": ".", "slower": -1}, ">= 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(said: Any, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if said is not None:
        (tmp_path / "simulation.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=why) as caught:
        roofline_of(read_simulation(tmp_path), tmp_path)
    assert "\n" not in str(caught.value)
