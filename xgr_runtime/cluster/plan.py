"""What is deployed: one description, which every actor is given, and the process that a role means by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xgr_runtime.cluster.scaling import WorkerBounds
from xgr_runtime.config import ClusterConfig, DecodeConfig, PrefillConfig, RouterConfig, ServeConfig, to_argv
from xgr_runtime.errors import ConfigError
from xgr_runtime.files import write_whole
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.topology import DECODE, PREFILL, derive, router_program
from xgr_runtime.transport import new_key_pair
from xgr_runtime.transport.keyring import write_key

ROLES = ("router", "prefill", "decode")
# What one machine has and a cluster has not: name of the setting, its value without it.
_OF_ONE_MACHINE = {
    "any_workers": 0,
    "standby": 0,
    "sglang_prefill": [],
    "workers_file": "",
    "catalog_store": "",
}


@dataclass(frozen=True)
class ClusterPlan:
    """A deployment. `keys`: role -> public and secret key; all processes of a role have one."""

    serve: ServeConfig
    cluster: ClusterConfig
    home: str  # node that routers prefer, or empty
    keys: dict[str, tuple[str, str]] = field(repr=False)

    def bounds(self, role: str) -> WorkerBounds:
        """Of the workers of a role."""
        c = self.cluster
        if role == "prefill":
            return WorkerBounds(c.prefill_min, c.prefill_max, c.prefill_target, c.scale_down_seconds)
        return WorkerBounds(c.decode_min, c.decode_max, c.decode_target, c.scale_down_seconds)

    def cpus(self, role: str) -> float:
        return float(getattr(self.cluster, f"{role}_cpus"))

    def gpus(self, role: str) -> float:
        """What one process of the role takes; no router takes any."""
        given = getattr(self.cluster, f"{role}_gpus", 0.0)
        return float(self.serve.device != "cpu") if given is None else float(given)


def make_plan(serve: ServeConfig, cluster: ClusterConfig, home: str) -> ClusterPlan:
    """With new keys. Raises `ConfigError` for settings that no cluster can have."""
    for name, none in _OF_ONE_MACHINE.items():
        if getattr(serve, name) != none:
            raise ConfigError(f"{name} is for one machine, `xgr serve`: leave it out for a cluster")
    if not serve.catalog:
        raise ConfigError("no catalog is named: give catalog, a file that every node has")
    if serve.layout == "colocated":
        raise ConfigError('layout is "colocated", for one machine, `xgr serve`: leave it out for a cluster')
    if serve.device.startswith("cuda:"):
        raise ConfigError(f"device is {serve.device}: give cuda, Ray chooses which")
    plan = ClusterPlan(serve, cluster, home, {role: new_key_pair() for role in ROLES})
    for role in ("prefill", "decode"):
        if serve.device == "cpu" and plan.gpus(role):
            raise ConfigError(f"[cluster] {role}_gpus is set and device is cpu: set device to cuda")
        if serve.device == "cuda" and not plan.gpus(role):
            raise ConfigError(f"[cluster] {role}_gpus is 0 and device is cuda: give a GPU or a part of one")
    return plan


def write_keys(plan: ClusterPlan, role: str, folder: Path) -> dict[str, str]:
    """The settings of a process of that role that name its keys, which are written below `folder`."""
    key = write_key(folder, role, plan.keys[role][1])
    allow = folder / "allow"
    lines = "".join(f"{name} {public}\n" for name, (public, _) in plan.keys.items())
    write_whole(allow, lines.encode(), secret=True)
    return {"curve_key": str(key), "curve_allow": str(allow)}


def worker_program(
    plan: ClusterPlan, role: str, name: str, host: str, ports: tuple[int, int], **keys: str
) -> Program:
    """A prefill or decode worker that listens on a node's address. `ports`: for control, and for KV."""
    serve = plan.serve
    threads = serve.threads or max(1, int(plan.cpus(role)))
    common: dict[str, Any] = {
        "name": name,
        "control_address": tcp(host, ports[0]),
        "leave_timeout": serve.drain_timeout,
        "threads": threads,
        "device": "cuda:0" if plan.gpus(role) else serve.device,  # Ray shows it no other
        **keys,
    }
    environ = {"OMP_NUM_THREADS": str(threads)}
    if role == "prefill":
        return Program(name, PREFILL, to_argv(derive(PrefillConfig, serve, **common)), environ)
    config = derive(DecodeConfig, serve, data_address=tcp(host, ports[1]), **common)
    return Program(name, DECODE, to_argv(config), environ)


def router_of(plan: ClusterPlan, name: str, workers_file: Path, **keys: str) -> Program:
    """A router that follows the file."""
    config = derive(
        RouterConfig,
        plan.serve,
        name=name,
        prefill=[],
        decode=[],
        workers_file=str(workers_file),
        # A node that ends takes both workers of a pair, one after the other, and no request is to blame.
        crash_budget=plan.serve.crash_budget + 1,
        max_attempts=plan.serve.max_attempts + 1,
        **keys,
    )
    return router_program(name, config)


def tcp(host: str, port: int) -> str:
    return f"tcp://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host
