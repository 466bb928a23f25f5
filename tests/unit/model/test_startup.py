"""How a decode worker comes to the memory of its prefill worker, which may be started again meanwhile."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from xgr_runtime.config import DecodeConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import Published, publish
from xgr_runtime.kv.shared_memory import CannotMap
from xgr_runtime.model import startup
from xgr_runtime.model.memory.kv_memory import KvMemory, exported_memory
from xgr_runtime.model.memory.shared_weights import export_weights
from xgr_runtime.wire.messages import ModelIdentity

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)


class PrefillRun:
    """What one run of a prefill worker publishes; its memory is there as long as we are."""

    def __init__(self, kept: list[object]) -> None:
        self.kv: KvMemory = exported_memory(MODEL, 4, 4, torch.device("cpu"))
        weights, block = export_weights(nn.Linear(2, 2))
        assert self.kv.shared is not None
        self.published = Published(MODEL, self.kv.shared, weights)
        kept += [self.kv, block]


def loading(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """Let something happen between the moment when weights are taken and the one when KV is mapped."""

    def load(*arguments: Any) -> Any:
        *_, place, _ = arguments
        place(nn.Linear(2, 2))
        meanwhile()
        return SimpleNamespace(name="played", identity=MODEL, max_positions=64, device=torch.device("cpu"))

    monkeypatch.setattr(startup, "load_backend", load)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def config_of(path: Path) -> DecodeConfig:
    return DecodeConfig(
        model_path="m",
        catalog="c",
        control_address="ipc://c",
        data_address="ipc://d",
        dtype="float32",
        memory_of=str(path),
    )


def test_weights_and_kv_are_those_of_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the weights of a run that has died are gone, however alive the owner of the KV is."""
    path, kept = tmp_path / "memory.json", list[object]()
    first, second = PrefillRun(kept), PrefillRun(kept)
    publish(path, first.published)
    loading(monkeypatch, lambda: publish(path, second.published))
    loaded = startup.load_model(config_of(path))
    assert loaded.pool.memory.shared == first.published.kv


def test_a_prefill_worker_that_died_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "memory.json", list[object]()
    run = PrefillRun(kept)
    publish(path, run.published)

    def die() -> None:
        def gone(*arguments: object) -> KvMemory:
            raise CannotMap("its memory cannot be opened")

        monkeypatch.setattr(startup, "mapped_memory", gone)
        monkeypatch.setattr(startup, "lives", lambda process: False)

    loading(monkeypatch, die)
    with pytest.raises(ConfigError, match="died meanwhile: start again"):
        startup.load_model(config_of(path))
