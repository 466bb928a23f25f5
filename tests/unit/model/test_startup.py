"""Before a model runs: a look at the GPU, and the memory of a prefill worker, which may start again."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import PublishedMemory, publish
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
        self.published = PublishedMemory(MODEL, self.kv.shared, weights)
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


class PlayedGpu:
    """What a worker on a second GPU asks for, in order, with as much memory free as it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, weights: Path, free: int) -> None:
        self.asked: list[object] = []
        weights.write_bytes(bytes(1000))
        monkeypatch.setattr(startup, "weight_files", lambda folder: [weights])
        monkeypatch.setattr(startup, "saved_dtype", lambda folder, device: "float32")
        monkeypatch.setattr(startup, "usable_cache", lambda setting: None)
        monkeypatch.setattr(startup, "keep_gpu_kernels", lambda cache: self.asked.append("folders"))
        monkeypatch.setattr(startup, "check_toolchain", self.tools)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.asked.append(("current", device)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: self.room(device, free))
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        monkeypatch.setattr(startup, "load_backend", self.load)

    def tools(self, device: str, *, first: bool) -> None:
        assert first, "nothing was kept yet"
        self.asked.append(("tools", device))

    def room(self, device: torch.device, free: int) -> tuple[int, int]:
        self.asked.append(("room", device))
        return free, 4000

    def load(self, *_: object) -> Any:
        self.asked.append("load")
        raise ConfigError("far enough")


@pytest.mark.parametrize(("dtype", "needed"), [("float32", 1000), ("bfloat16", 500)])
def test_a_gpu_is_looked_at_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, needed: int
) -> None:
    settings = PrefillConfig(model_path="m", control_address="ipc://c", device="cuda:1", dtype=dtype)
    gpu = torch.device("cuda", 1)
    enough = PlayedGpu(monkeypatch, tmp_path / "weights", free=needed)
    with pytest.raises(ConfigError, match="far enough"):
        startup.load_model(settings)
    assert enough.asked == ["folders", ("tools", "cuda:1"), ("current", gpu), ("room", gpu), "load"]
    short = PlayedGpu(monkeypatch, tmp_path / "weights", free=needed - 1)
    with pytest.raises(ConfigError, match=r"--device cuda:1 has .* GB free, .*weights take .*nvidia-smi"):
        startup.load_model(settings)
    assert short.asked[-1] == ("room", gpu)
