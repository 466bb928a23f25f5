"""Which devices there are to choose from: what they cost, what they hold, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary
from xgr_runtime.planning.speeds import MeasuredSpeed, RooflineSpeed, Speed
from xgr_runtime.planning.traffic import read_toml
from xgr_runtime.scheduling.roofline import DEVICES, DeviceNumbers, ModelNumbers, Roofline, model_numbers
from xgr_runtime.wire.messages import StepCost

MOST_COST_BYTES = 1 << 16

DeviceRole = Literal["prefill", "decode", "pair"]
"""What a device does: prompts, searches, or both in turns."""

ROLES: tuple[DeviceRole, ...] = get_args(DeviceRole)

Few = Annotated[float, Meta(ge=0, le=1e6)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Number = Annotated[int, Meta(ge=1, le=1 << 30)]


class CostFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `xgr bench --calibrate` writes: what launches of a deployment's workers cost, in seconds.

    `overhead`: of a request outside of its workers. `router`: processor time of it in the router, if known.
    """

    machine: str
    prefill: StepCost
    decode: StepCost
    token_bytes: Number  # of KV, all layers
    layers: Number
    kv_pages: Number  # of a worker
    overhead: Few = 0.0


class OfferedDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A `[[devices]]` of a file of devices. One of `costs`, a file, and `roofline`, a name or numbers."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    price: Positive  # of one, in whatever unit all prices are
    most: Number = 64  # of them
    roles: Annotated[tuple[DeviceRole, ...], Meta(min_length=1)] = ROLES
    costs: str = ""
    roofline: str | DeviceNumbers = ""
    kv_tokens: Number | None = None  # of prompts that one holds
    max_rows: Number = 2048  # beams that one holds
    page_size: Annotated[int, Meta(ge=1, le=4096)] = (
        16  # tokens of a page of the deployment that was measured
    )
    batch_tokens: Number = 4096  # of a forward, at most
    launch: Literal["level", "cohort", ""] = ""  # levels of a search, as on a CPU, or all of some; "": usual


class DeviceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of devices. `model`: sizes, or a folder with a config.json, for rooflines."""

    devices: Annotated[list[OfferedDevice], Meta(min_length=1, max_length=16)]
    model: str | ModelNumbers = ""
    link_gbit: Positive = 400.0  # per second, into each decode worker
    router_ms: Few = 0.5  # of the router's one core, for each request
    overhead_ms: Few | None = None  # on top for each; absent: as measured, else 1
    client_ms: Few = 0.0  # of a client on the same cores, where there is one
    max_live: Number = 512  # requests that the router holds
    cores: Annotated[int, Meta(ge=0, le=4096)] = 0  # that router and all launches share; 0: they share none


@dataclass(frozen=True)
class DeviceKind:
    """A device with all that a simulation needs to know of it."""

    name: str
    price: float
    most: int
    roles: tuple[DeviceRole, ...]
    speed: Speed
    kv_tokens: int  # of prompts
    max_rows: int
    batch_tokens: int
    cohorts: bool
    token_bytes: int
    layers: int


@dataclass(frozen=True)
class Site:
    """What is the same for all mixes. Seconds, bytes per second."""

    link: float = 50e9
    router: float = 0.5e-3
    overhead: float = 1e-3
    client: float = 0.0
    cores: int = 0
    max_live: int = 512


def read_devices(path: Path) -> tuple[list[DeviceKind], Site]:
    """Files that it names are looked for beside it. Raises ConfigError, ModelError."""
    file, folder = read_toml(path, DeviceFile), path.parent
    names = [device.name for device in file.devices]
    if len({*names}) < len(names):
        raise ConfigError(f"{path}: two devices have one name, of {', '.join(names)}: rename one")
    overheads: list[float] = []
    kinds = [_kind(path, device, file, folder, overheads) for device in file.devices]
    measured = max(overheads, default=1e-3)
    overhead = measured if file.overhead_ms is None else file.overhead_ms / 1e3
    around = Site(
        file.link_gbit * 1e9 / 8,
        file.router_ms / 1e3,
        overhead,
        file.client_ms / 1e3,
        file.cores,
        file.max_live,
    )
    return kinds, around


def _kind(
    path: Path, device: OfferedDevice, file: DeviceFile, folder: Path, overheads: list[float]
) -> DeviceKind:
    if bool(device.costs) == bool(device.roofline):
        raise ConfigError(
            f"{path}: device {device.name} needs costs, a file of `xgr bench --calibrate`, or a roofline"
        )
    if device.costs:
        return _measured(device, folder, overheads)
    return _played(path, device, file, folder)


def _measured(device: OfferedDevice, folder: Path, overheads: list[float]) -> DeviceKind:
    costs = read_costs(folder / device.costs)
    overheads.append(costs.overhead)
    speed = MeasuredSpeed(costs.prefill, costs.decode)
    tokens = device.kv_tokens or costs.kv_pages * device.page_size
    return _of(device, speed, tokens, device.launch == "cohort", costs.token_bytes, costs.layers)


def _played(path: Path, device: OfferedDevice, file: DeviceFile, folder: Path) -> DeviceKind:
    numbers, model = device.roofline, file.model
    if isinstance(numbers, str):
        if numbers not in DEVICES:
            raise ConfigError(
                f"{path}: no numbers of a device {numbers!r}: use one of {', '.join(DEVICES)}, or "
                "write name, flops and bytes_per_second"
            )
        numbers = DEVICES[numbers]
    if isinstance(model, str):
        if not model or not (folder / model).is_dir():
            raise ConfigError(f"{path}: model needs sizes, or a folder with a config.json, for a roofline")
        model = model_numbers(folder / model)
    if device.kv_tokens is None:
        raise ConfigError(f"{path}: device {device.name} needs kv_tokens: tokens of prompts that one holds")
    speed = RooflineSpeed(Roofline(numbers, model))
    return _of(device, speed, device.kv_tokens, device.launch != "level", model.token_bytes, model.layers)


def _of(
    device: OfferedDevice, speed: Speed, tokens: int, cohorts: bool, token_bytes: int, layers: int
) -> DeviceKind:
    return DeviceKind(
        device.name,
        device.price,
        device.most,
        tuple(role for role in ROLES if role in device.roles),
        speed,
        tokens,
        device.max_rows,
        device.batch_tokens,
        cohorts,
        token_bytes,
        layers,
    )


def read_costs(path: Path) -> CostFile:
    """Raises ConfigError."""
    try:
        with open_ordinary(path) as file:
            return msgspec.json.decode(file.read(MOST_COST_BYTES), type=CostFile)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is no file of `xgr bench --calibrate`: {error}") from None
