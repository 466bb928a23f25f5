"""On which GPU SGLang's models and pools lie: played releases, for there is neither SGLang here nor a GPU.

`tests/sglang/test_contract.py` asks the same of the runner of the release that is installed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from xgr_runtime.errors import ModelError
from xgr_runtime.model.sglang import startup
from xgr_runtime.model.sglang.transfer.memory import SglangKv

RELEASES = {  # how the settings are published, and whether the runner is told its place by a parallel state
    "0.5.16": ("set_server_args", True),
    "0.5.17": ("publish", True),
    "0.5.21": ("ranks", False),
}


@dataclass(frozen=True, kw_only=True)
class ParallelState:
    """Some of SGLang's fields, of each kind."""

    tp_rank: int
    tp_size: int
    dp_rank: int | None
    attn_dcp_rank: int
    attn_dcp_size: int
    moe_dp_rank: int | None
    gpu_id: int


class Release:
    """SGLang as far as a start needs it; `current` is what torch.cuda would call the current device."""

    def __init__(self, name: str, strays_to: int | None = None) -> None:
        """`strays_to`: the GPU on which weights come to lie, whatever was said."""
        self.way, self.has_state = RELEASES[name]
        self.strays_to = strays_to
        self.current = 0
        self.published: Any = None
        self.state: ParallelState | None = None

    def modules(self) -> dict[str, SimpleNamespace]:
        """What is imported, by its name below sglang.srt."""
        context = SimpleNamespace()
        if self.way == "set_server_args":
            context.get_context = lambda: SimpleNamespace(set_server_args=lambda settings: None)
        else:
            context.publish = self.publish
        if self.way == "ranks":
            context.SpawnRanks = SimpleNamespace
        ignored = lambda *_, **__: None  # noqa: E731
        model_config = SimpleNamespace(from_server_args=lambda settings: "config")
        return {
            "server_args": SimpleNamespace(ServerArgs=SimpleNamespace),
            "runtime_context": context,
            "configs.model_config": SimpleNamespace(ModelConfig=model_config),
            "distributed.parallel_state": SimpleNamespace(destroy_model_parallel=ignored),
            "distributed.parallel_state_wrapper": SimpleNamespace(ParallelState=ParallelState),
            "distributed.bootstrap": SimpleNamespace(
                init_parallel_runtime=ignored, init_layer_runtime=ignored
            ),
            "eplb.expert_location": SimpleNamespace(set_global_expert_location_metadata=ignored),
            "model_executor.model_runner": SimpleNamespace(ModelRunner=self.runner),
        }

    def publish(self, settings: object, role: str, ranks: Any = None) -> None:
        self.published = ranks

    def runner(self, *, gpu_id: int, server_args: Any, ps: ParallelState | None = None, **_: object) -> Any:
        """Makes the GPU current that its release reads from the state, or from what was published."""
        assert (ps is not None) == self.has_state
        self.state = ps
        if server_args.device == "cuda":
            self.current = ps.gpu_id if ps is not None else self.published.gpu_id
            assert self.current == gpu_id, "told twice, and differently"
        index = self.current if self.strays_to is None else self.strays_to
        place = torch.device("cuda", index) if server_args.device == "cuda" else torch.device("cpu")
        return SimpleNamespace(model=PlayedModel(place))


class PlayedModel:
    """Weights that say where they lie: no GPU is there to hold them."""

    def __init__(self, where: torch.device) -> None:
        self.where = where

    def parameters(self) -> Any:
        return iter([SimpleNamespace(device=self.where)])

    def eval(self) -> "PlayedModel":
        return self

    def requires_grad_(self, _: bool) -> "PlayedModel":
        return self


def install(monkeypatch: pytest.MonkeyPatch, release: Release) -> None:
    """Let `release` be what `import sglang` finds."""
    modules = release.modules()
    packages = {"sglang", "sglang.srt", *(f"sglang.srt.{name}".rpartition(".")[0] for name in modules)}
    found = {name: ModuleType(name) for name in (*packages, *(f"sglang.srt.{name}" for name in modules))}
    for name, content in modules.items():
        vars(found[f"sglang.srt.{name}"]).update(vars(content))
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, module)
    monkeypatch.setattr(startup, "_make_own_group", lambda: None)
    monkeypatch.setattr(startup, "_groups_made", False)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_the_model_lies_on_the_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, release: str, device: str, index: int
) -> None:
    played = Release(release)
    install(monkeypatch, played)
    model = startup.start_model(Path("folder"), "bfloat16", device)
    assert next(model.parameters()).device == torch.device("cuda", index)
    assert played.current == index


@pytest.mark.parametrize("release", ["0.5.16", "0.5.17"])
def test_a_process_is_alone_and_knows_its_gpu(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    played = Release(release)
    install(monkeypatch, played)
    startup.start_model(Path("folder"), "bfloat16", "cuda:3")
    alone = ParallelState(
        tp_rank=0, tp_size=1, dp_rank=None, attn_dcp_rank=0, attn_dcp_size=1, moe_dp_rank=None, gpu_id=3
    )
    assert played.state == alone


@pytest.mark.parametrize("release", RELEASES)
def test_weights_on_another_gpu_are_refused(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    install(monkeypatch, Release(release, strays_to=0))
    with pytest.raises(ModelError, match="lies on cuda:0, not on cuda:1"):
        startup.start_model(Path("folder"), "bfloat16", "cuda:1")


@pytest.mark.parametrize("release", RELEASES)
def test_on_a_cpu_no_gpu_is_named(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    install(monkeypatch, Release(release))
    model = startup.start_model(Path("folder"), "float32", "cpu")
    assert next(model.parameters()).device == torch.device("cpu")


def test_a_servers_pool_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU without an index torch makes a copy on the current one, which no later prompt would be in."""
    asked: list[torch.device] = []

    def as_tensor(memory: object, device: torch.device) -> torch.Tensor:
        asked.append(device)
        return torch.zeros(64, dtype=torch.uint8)

    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    pool = SimpleNamespace(
        kv_data_ptrs=[1 << 20, 1 << 21], kv_data_lens=[64, 64], kv_item_lens=[8, 8], page_size=1, gpu_id=1
    )
    SglangKv(pool, "cuda")
    assert asked == [torch.device("cuda", 1)] * 2
