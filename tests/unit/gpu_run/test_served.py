"""The servers' settings on a GPU: each layout is one that the launcher takes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_served
from models import shape_of

from xgr_runtime.config import ServeConfig, parse, to_argv
from xgr_runtime.launcher.topology import layout_of

LAB: Any = SimpleNamespace(cuda=True, toy=False, layers="auto")
MADE: Any = SimpleNamespace(folder=Path("/model"), catalog_path=Path("/catalog.xgr"))


@pytest.mark.parametrize("layout", test_served.LAYOUTS)
def test_the_launcher_takes_each_layout_on_one_gpu(layout: str) -> None:
    config = test_served._config(LAB, MADE, layout, 512, test_served.KV_BYTES)
    assert parse(ServeConfig, to_argv(config), environ={}) == config
    assert layout_of(config, gpus=1) == layout.split("-")[0]
    assert config.device == "cuda" and config.max_rows >= 1024 and config.max_beam_width == 512


@pytest.mark.parametrize(("name", "billions"), [("0.6B", 0.6), ("1.7B", 1.7), ("4B", 4.0)])
def test_checkpoints_have_the_size_of_their_name(name: str, billions: float) -> None:
    shape = shape_of(name)
    parameters = shape.layers * shape.layer_weights + shape.vocab * shape.hidden
    assert parameters == pytest.approx(billions * 1e9, rel=0.03)
