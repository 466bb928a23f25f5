"""Starting SGLang's model layer alone: its settings, its groups of one process, its model; no memory pools.

How that is done changed twice among the releases we run, and this file is the only one that knows; `versions`
says which those are.
"""

import contextlib
import importlib
import inspect
import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import distributed, nn

from xgr_runtime.model.backends import shims
from xgr_runtime.model.device.place import check_place

shims.install()

# SGLang is not typed.
Settings: TypeAlias = Any
ModelConfig: TypeAlias = Any

SETTINGS: dict[str, Any] = {
    "load_format": "safetensors",
    "model_impl": "sglang",
    # Never asked, the stage is; it must be one that SGLang accepts on every device.
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "disable_cuda_graph": True,
    "disable_radix_cache": True,
    "disable_overlap_schedule": True,
    "page_size": 1,
    "max_total_tokens": 8192,
    "max_running_requests": 16,
    "chunked_prefill_size": -1,
}

_groups_made = False


# What `start_model` imports, in whichever release has it; the registry imports all of SGLang's models.
_LATER = (
    "server_args",
    "runtime_context",
    "configs.model_config",
    "distributed.bootstrap",
    "distributed.parallel_state_wrapper",
    "eplb.expert_location",
    "model_executor.model_runner",
    "models.registry",
)


def import_ahead() -> None:
    """Import what `start_model` will, and start nothing."""
    with undisturbed():
        for name in _LATER:
            with contextlib.suppress(ImportError):
                importlib.import_module(f"sglang.srt.{name}")


def start_model(folder: Path, dtype: str, device: str = "cpu") -> nn.Module:
    """SGLang's model of the checkpoint in `folder`, with its weights on `device`: "cpu", "cuda" or "cuda:N".

    `dtype` is "float32" or "bfloat16". A process should hold one: SGLang keeps settings and groups in
    globals, and a second start replaces those of the first. Raises ModelError where the weights have come to
    lie on another GPU, and whatever SGLang raises.
    """
    # A few models compile functions as they first run: seconds in the middle of serving, and a C++ compiler.
    torch.compiler.set_stance("force_eager")
    kind, _, index = device.partition(":")
    gpu = int(index or 0)
    with undisturbed():
        _make_own_group()
        settings = _settings(folder, dtype, kind)
        config, extra = _publish(settings, kind, gpu)
        from sglang.srt.model_executor.model_runner import ModelRunner

        runner = ModelRunner(
            model_config=config,
            mem_fraction_static=0.1,  # of the pools that are never made
            gpu_id=gpu,
            nccl_port=0,  # the group exists already: nobody listens
            server_args=settings,
            **extra,
        )
    model: nn.Module = runner.model
    wanted = torch.device(kind, gpu) if kind == "cuda" else torch.device(kind)
    check_place(next(model.parameters()).device, wanted, "SGLang's model")
    return model.eval().requires_grad_(False)


def _settings(folder: Path, dtype: str, kind: str) -> Settings:
    from sglang.srt.server_args import ServerArgs

    settings = ServerArgs(model_path=str(folder), dtype=dtype, device=kind, **SETTINGS)
    if hasattr(settings, "resolve_once"):  # from 0.5.19; before, the constructor did it
        settings.resolve_once()
    return settings


def _publish(settings: Settings, kind: str, gpu: int) -> tuple[ModelConfig, dict[str, Any]]:
    """Make `settings` the process's; returns the model's config and what else this release's runner takes."""
    from sglang.srt import runtime_context
    from sglang.srt.configs import model_config

    _forget_former_experts()
    if hasattr(runtime_context, "SpawnRanks"):  # from 0.5.21
        ranks = runtime_context.SpawnRanks(world_rank=0, gpu_id=gpu)
        runtime_context.publish(settings, role="scheduler", ranks=ranks)
        config = model_config.ModelConfig.from_server_args(settings)
        _make_groups(settings, config, kind)
        return config, {}
    if hasattr(runtime_context, "publish"):  # 0.5.17 to 0.5.20
        runtime_context.publish(settings, role="scheduler")
    else:  # 0.5.16
        runtime_context.get_context().set_server_args(settings)
    _forget_former_groups()
    return model_config.ModelConfig.from_server_args(settings), {"ps": _alone(gpu)}


def _make_groups(settings: Settings, config: ModelConfig, kind: str) -> None:
    """From 0.5.21 groups are made outside of the runner, and once in a process."""
    global _groups_made
    from sglang.srt.distributed import bootstrap

    if not _groups_made:
        bootstrap.init_parallel_runtime(server_args=settings, device=kind, dist_port=0)
        _groups_made = True
    bootstrap.init_layer_runtime(model_config=config)


def _forget_former_groups() -> None:
    """Before 0.5.21 every runner makes its groups and fails where another one has."""
    from sglang.srt.distributed import parallel_state

    parallel_state.destroy_model_parallel()


def _forget_former_experts() -> None:
    """Where a mixture of experts was loaded before, the next model of any kind would fail."""
    from sglang.srt.eplb import expert_location

    expert_location.set_global_expert_location_metadata(None, allow_overwrite=True)


def _alone(gpu: int) -> Any:
    """The parallel state of a process that is alone: every size 1, every rank 0, and the GPU that it has.

    Before 0.5.21 the runner makes that GPU the current one, on which it then puts the weights.
    """
    from sglang.srt.distributed.parallel_state_wrapper import ParallelState

    known = {"gpu_id": gpu, "dp_rank": None, "moe_dp_rank": None}  # no data-parallel controller
    fields = inspect.signature(ParallelState).parameters
    return ParallelState(**{name: known.get(name, int(name.endswith("_size"))) for name in fields})


@contextmanager
def undisturbed() -> Iterator[None]:
    """For SGLang's imports and its start: nothing is printed, and our threads and environment stay ours."""
    with _quiet(), _our_environment(), _our_threads():
        yield


def _make_own_group() -> None:
    """torch.distributed with this process alone, which SGLang then finds made.

    SGLang's way opens a TCP port of a number that two workers could both pick; a store in memory opens none.
    Gloo still listens, once a group, at whatever ports are free: on loopback then.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not distributed.is_initialized():
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


@contextmanager
def _our_threads() -> Iterator[None]:
    """Keep the number of threads that the worker chose; `_our_environment` takes the variable back."""
    threads = torch.get_num_threads()
    # One group of cores, whatever the machine: else SGLang counts NUMA nodes and may refuse to start.
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:  # the call begins a thread, which no template may have
            torch.set_num_threads(threads)


@contextmanager
def _our_environment() -> Iterator[None]:
    """Take back what is set meanwhile: SGLang sets dozens of variables, which our children would inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """SGLang reports on a server that does not run here. What goes wrong it raises.

    Its progress bars write to stderr as it is when they are made; our log's handler holds on to the real one.
    """
    logging.getLogger("sglang").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
