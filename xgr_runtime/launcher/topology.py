"""What a deployment consists of: a launcher's configuration, checked and spread over its processes."""

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from xgr_runtime.checkpoint import find_adapter, read_config, weight_files
from xgr_runtime.config import (
    SECRETS,
    AnyConfig,
    DecodeConfig,
    ImportsConfig,
    PrefillConfig,
    RouterConfig,
    ServeConfig,
    flag,
    to_argv,
)
from xgr_runtime.config.machine import check_memory, check_threads, check_workers
from xgr_runtime.config.variables import variable
from xgr_runtime.discovery.file import FileList
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.mps import uses_mps
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.supervisor import StartGroup
from xgr_runtime.launcher.template import Template
from xgr_runtime.process.template import Imports
from xgr_runtime.transport.addresses import check_host_names, check_url, is_loopback

log = logging.getLogger(__name__)

# Modules that run as processes.
ROUTER, PREFILL, DECODE, ANY = "router", "prefill_worker", "decode_worker", "any_worker"
IMPORTS = "xgr_runtime.model.imports"  # which knows what a model needs
WORKERS = "workers"  # the template of both kinds
STANDBY_GRACE = 2.0  # seconds; one that waits has nothing to finish
WORKER_GRACE = 10.0  # seconds; workers stop after the forward that is under way
MEMORY_FILE = "memory.json"  # see `xgr_runtime.kv.published`
TURNS_FILE = "gpu.turns"  # see `xgr_runtime.worker.device_turns`
ROUTER_GRACE = 5.0  # seconds on top of --drain-timeout

C = TypeVar("C", PrefillConfig, DecodeConfig, AnyConfig, RouterConfig, ImportsConfig)


def check(config: ServeConfig) -> None:
    """What can be said before anything is started. Raises `StartupError`."""
    if not config.catalog and not config.catalog_store:
        raise ConfigError("no catalog is named: give --catalog FILE, or a --catalog-store that has one")
    check_host_names(config.allowed_hosts)
    layout_of(config)
    uses_mps(config)
    if config.workers_file:
        FileList(Path(config.workers_file)).look()
    _forks(config)
    _check_roles(config)
    _check_machine(config)
    check_port(config.host, config.port)
    _check_checkpoint(Path(config.model_path), config.base_model_path)
    for url in config.sglang_prefill:
        check_url(url, "--sglang-prefill")
    if not config.prefill_workers and not config.sglang_prefill:
        raise ConfigError(
            "--prefill-workers is 0: start at least one, or name an SGLang server: --sglang-prefill"
        )
    if not config.api_key and not is_loopback(config.host):
        log.warning("--host %s is open to other machines and no --api-key is set", config.host)


def _check_roles(config: ServeConfig) -> None:
    """Raises `ConfigError` where no process could have both roles."""
    for setting, count in (("--standby", config.standby), ("--any-workers", config.any_workers)):
        if not count or config.model_backend != "sglang":
            continue
        raise ConfigError(
            f"{setting} needs layers that take prompts and beams in one process, for which SGLang's were not "
            f"tried: use --model-backend transformers, or leave {setting} out"
        )


def _check_checkpoint(folder: Path, base: str) -> None:
    """Raises `ModelError`."""
    if find_adapter(folder, base) is None:
        read_config(folder)
        weight_files(folder)


def _check_machine(config: ServeConfig) -> None:
    """Raises `ConfigError` for more processes, threads or memory than this machine has."""
    workers = config.prefill_workers + config.decode_workers + config.any_workers
    if config.model_backend != "simulated":  # what is played takes no core
        check_workers(config.prefill_workers, config.decode_workers, config.any_workers, config.standby)
    check_threads(config.threads)
    pools = (1 if config.layout == "colocated" else workers) + config.standby
    workers += config.standby
    if config.device == "cpu":
        check_memory(
            pools * config.kv_bytes, "--kv-bytes", config.kv_bytes, f"prompt KV of {workers} workers"
        )
    tiers = (config.prefill_workers + config.any_workers + config.standby) * config.host_cache_bytes
    check_memory(tiers, "--host-cache-bytes", config.host_cache_bytes, "KV of all prefill workers")


def plan(
    config: ServeConfig,
    folder: Path,
    catalog: str,
    cores: int,
    gpus: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> list[StartGroup]:
    """The processes of the deployment, with sockets in `folder` and their catalog at `catalog`.

    `gpus`: of this machine, by default all. `environ`: what workers need in theirs besides.
    The router is a group of its own: no port opens before every worker has found its model and catalog good.
    """
    layout = layout_of(config, gpus)
    devices = _devices(config, layout, gpus)
    turns = _take_turns(config, layout)
    threads, own = _threads(config, cores, turns)
    own |= environ
    common = {"threads": threads, "turns_file": str(folder / TURNS_FILE) if turns else ""}
    memory = str(folder / MEMORY_FILE) if layout == "colocated" else ""
    prefill = [
        derive(PrefillConfig, config, **_at(folder, name, devices), publish_memory=memory, **common)
        for name in _names("prefill", config.prefill_workers)
    ]
    decode = [
        derive(
            DecodeConfig,
            config,
            **_at(folder, name, devices),
            data_address=_socket(folder, f"{name}.data"),
            catalog=catalog,
            memory_of=memory,
            **common,
        )
        for name in _names("decode", config.decode_workers)
    ]
    either = _either(config, folder, devices, common | {"catalog": catalog})
    workers = [Program(c.name, PREFILL, to_argv(c), own, WORKERS) for c in prefill]
    workers += [Program(c.name, DECODE, to_argv(c), own, WORKERS) for c in decode]
    workers += [Program(c.name, ANY, to_argv(c), own, WORKERS) for c in either]
    places = [workers] if layout == "colocated" else [[worker] for worker in workers]
    reserves = _reserves(config, folder, layout, devices, common | {"catalog": catalog})
    router = _router(config, catalog, [*prefill, *decode, *either])
    return [
        StartGroup(workers, WORKER_GRACE),
        StartGroup([router], config.drain_timeout + ROUTER_GRACE),
        *(
            StartGroup(
                [Program(c.name, ANY, to_argv(c), own, WORKERS, waits=True) for c in reserve],
                STANDBY_GRACE,
                places,
            )
            for reserve in reserves
        ),
    ]


def _either(
    config: ServeConfig, folder: Path, devices: Iterator[str], common: Mapping[str, Any]
) -> list[AnyConfig]:
    """Workers that change roles: one begins with prompts, the next with beams."""
    return [
        derive(
            AnyConfig,
            config,
            **_at(folder, name, devices),
            data_address=_socket(folder, f"{name}.data"),
            first_role="decode" if number % 2 else "prefill",
            **common,
        )
        for number, name in enumerate(_names("any", config.any_workers))
    ]


def _reserves(
    config: ServeConfig, folder: Path, layout: str, devices: Iterator[str], common: Mapping[str, Any]
) -> Iterator[list[AnyConfig]]:
    """Who waits: one for any place, or two that share memory for two that share theirs."""
    for name in _names("standby", config.standby):
        device = next(devices)
        if layout != "colocated":
            role = "any" if config.prefill_workers or config.any_workers else "decode"
            yield [derive(AnyConfig, config, name=name, device=device, role=role, **common)]
            continue
        memory = str(folder / f"{name}.{MEMORY_FILE}")
        yield [
            derive(AnyConfig, config, name=f"{name}-{role}", device=device, role=role, **own, **common)
            for role, own in (("prefill", {"publish_memory": memory}), ("decode", {"memory_of": memory}))
        ]


def templates(config: ServeConfig, cores: int) -> dict[str, Template]:
    """From which the deployment's processes are forked, none where they are not. Nothing is started yet."""
    if not _forks(config):
        return {}
    layout = layout_of(config)
    _, environ = _threads(config, cores, _take_turns(config, layout))
    modules = [PREFILL] * bool(config.prefill_workers) + [DECODE]
    modules += [ANY] * bool(config.standby or config.any_workers)
    argv = to_argv(derive(ImportsConfig, config, shared_weights=layout == "colocated"))
    ours = [
        (WORKERS, Imports([*(f"{name}.__main__" for name in modules), IMPORTS], argv), environ),
        (ROUTER, Imports([f"{ROUTER}.__main__"], []), {}),
    ]
    return {name: Template(f"template of {name}", imports, environ) for name, imports, environ in ours}


def _forks(config: ServeConfig) -> bool:
    """Raises `ConfigError`."""
    linux = sys.platform == "linux"
    if config.start_method == "fork" and not linux:
        raise ConfigError("--start-method fork needs Linux: use --start-method spawn")
    return config.start_method != "spawn" and linux


def layout_of(config: ServeConfig, gpus: int | None = None) -> Literal["split", "colocated"]:
    """Whether the decode worker reads the prefill worker's memory in place. Raises `ConfigError`."""
    pair = _is_pair(config)
    if config.layout == "auto":
        one_gpu = config.device.startswith("cuda:") or (
            config.device == "cuda" and (count_gpus() if gpus is None else gpus) == 1
        )
        return "colocated" if pair and one_gpu and config.kv_transfer == "auto" else "split"
    if config.layout == "colocated":
        if config.sglang_prefill:
            raise ConfigError("--layout colocated knows no --sglang-prefill: use --layout split")
        if not pair:
            raise ConfigError(
                "--layout colocated is one prefill and one decode worker: set --prefill-workers and "
                "--decode-workers to 1 and --any-workers to 0, or use --layout split"
            )
        if config.kv_transfer == "frames":
            raise ConfigError(
                "--kv-transfer frames copies KV, --layout colocated reads it in place: leave one out"
            )
    return config.layout


def _take_turns(config: ServeConfig, layout: str) -> bool:
    """Whether there are two workers that share one GPU or the cores of this machine, each with all of it."""
    return (
        config.sharing == "turns" and _is_pair(config) and (config.device == "cpu" or layout == "colocated")
    )


def _is_pair(config: ServeConfig) -> bool:
    """Whether there is one prefill and one decode worker, and nothing else that takes prompts or beams."""
    others = config.sglang_prefill or config.any_workers
    return (config.prefill_workers, config.decode_workers) == (1, 1) and not others


def count_gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that processes of ours will see; at least one, so that the workers say what is missing."""
    there = len([path for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return max(1, there if visible is None else _count_visible(visible, there))


def _count_visible(names: str, there: int) -> int:
    """As CUDA reads the variable: up to the first name of no GPU, and one slice of a GPU at most."""
    seen: list[str] = []
    for name in map(str.strip, names.split(",")):
        number = name.isdigit() and (not there or int(name) < there)
        if not (number or name.startswith(("GPU-", "MIG-"))) or name in seen:
            break
        seen.append(name)
    return min(1, len(seen)) if names.lstrip().startswith("MIG-") else len(seen)


def _devices(config: ServeConfig, layout: str, gpus: int | None) -> Iterator[str]:
    """Where each worker runs, prefill first: all in one place, or on the machine's GPUs in turn."""
    if config.device != "cuda" or layout == "colocated":
        return repeat(config.device)
    count = count_gpus() if gpus is None else gpus
    return cycle([f"cuda:{number}" for number in range(count)])


def derive(kind: type[C], config: ServeConfig, **own: Any) -> C:
    """A process's configuration: its own values, and the launcher's for every other field they share."""
    shared = {name: getattr(config, name) for name in kind.__struct_fields__ if hasattr(config, name)}
    return kind(**(shared | {"ready_fd": -1} | own))


def _threads(config: ServeConfig, cores: int, turns: bool) -> tuple[int, dict[str, str]]:
    """Of each worker, and its environment for thread pools that torch's own setting does not reach.

    They read it as they are loaded, so a template has to have it.
    """
    sharing = config.prefill_workers + len(config.sglang_prefill) + config.decode_workers
    sharing += config.any_workers
    threads = config.threads or (cores if turns else max(1, cores // sharing))
    environ = {"OMP_NUM_THREADS": str(threads)}
    if threads * sharing > cores:
        # Threads that wait for each other spin. Where workers share cores, spinning for long starves the one
        # that computes (10 times slower, seen); not spinning at all costs every forward a factor of two.
        environ["GOMP_SPINCOUNT"] = "20000"
    return threads, environ


def _router(serve: ServeConfig, catalog: str, workers: Sequence[PrefillConfig | DecodeConfig]) -> Program:
    """Keys travel in the environment: everybody on the machine can read a process's arguments."""
    prompts = [worker for worker in workers if _begins_with_prompts(worker)]
    config = derive(
        RouterConfig,
        serve,
        catalog=catalog,
        prefill=[*(worker.control_address for worker in prompts), *serve.sglang_prefill],
        decode=[worker.control_address for worker in workers if worker not in prompts],
        plan_roles=serve.any_workers > 0,
    )
    return router_program(ROUTER, config)


def router_program(name: str, config: RouterConfig) -> Program:
    """A router of that configuration; its keys are not among its arguments."""
    argv = [arg for arg in to_argv(config) if not arg.startswith(tuple(f"{flag(key)}=" for key in SECRETS))]
    environ = {variable(key): value for key in SECRETS if (value := getattr(config, key))}
    return Program(name, "router", argv, environ, ROUTER)


def _begins_with_prompts(worker: PrefillConfig | DecodeConfig) -> bool:
    if isinstance(worker, AnyConfig):
        return worker.first_role == "prefill"
    return isinstance(worker, PrefillConfig)


def _names(role: str, count: int) -> list[str]:
    return [f"{role}-{number}" for number in range(count)]


def _at(folder: Path, name: str, devices: Iterator[str]) -> dict[str, str]:
    """Where a worker is: its socket for routers, and its device."""
    return {"name": name, "control_address": _socket(folder, name), "device": next(devices)}


def _socket(folder: Path, name: str) -> str:
    return f"ipc://{folder / name}"


def check_port(host: str, port: int) -> None:
    """Raises `ConfigError` where the router could not bind; what changes meanwhile it finds out itself."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the latter of a name with labels that none may have
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise ConfigError(f"--host {host} is not an address of this machine: {reason}") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(
                f"cannot use port {port} of {host}, {error.strerror}: choose another --port or --host"
            ) from None
