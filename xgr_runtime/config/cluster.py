"""The table `[cluster]` of a serve.toml: what a cluster needs to know besides what one machine does."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from xgr_runtime.config.values import brief
from xgr_runtime.errors import ConfigError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")

Few = Annotated[int, Meta(ge=1, le=256)]
Share = Annotated[float, Meta(ge=0, le=1024)]
Target = Annotated[float, Meta(ge=0.001, le=1e9)]


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of each process run on a cluster, and what each takes of a node.

    `prefill_target`: tokens of prompts that are not computed, per worker; `decode_target`: share of rows in
    use, as which a wait of `decode_wait` seconds counts, too. Above them workers are added; workers go after
    `scale_down_seconds` in which fewer would have done.
    """

    name: str = "xgr"  # of the deployment; a cluster may have several
    routers: Few = 1
    prefill_min: Few = 1
    prefill_max: Few = 1
    prefill_target: Target = 8192.0
    decode_min: Few = 1
    decode_max: Few = 1
    decode_target: Annotated[float, Meta(ge=0.001, le=1.0)] = 0.6
    decode_wait: Annotated[float, Meta(ge=0.001, le=3600.0)] = 0.25
    scale_down_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    router_cpus: Share = 1.0
    prefill_cpus: Share = 1.0
    decode_cpus: Share = 1.0
    prefill_gpus: Share | None = None  # None: one where the device is a GPU, else none
    decode_gpus: Share | None = None


def read_cluster(table: object) -> ClusterConfig:
    """The checked table. Raises `ConfigError`."""
    if not isinstance(table, Mapping):
        raise ConfigError("cluster in the configuration file is no table: write [cluster] above its settings")
    try:
        config = msgspec.convert(
            {name.replace("-", "_"): value for name, value in table.items()}, ClusterConfig
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"[cluster] in the configuration file: {brief(str(error))}") from None
    _check(config)
    return config


def _check(config: ClusterConfig) -> None:
    if not _NAME.fullmatch(config.name):
        raise ConfigError(
            f"[cluster] name is {brief(repr(config.name))}: give up to 40 small letters, digits and dashes"
        )
    for role in ("prefill", "decode"):
        least, most = getattr(config, f"{role}_min"), getattr(config, f"{role}_max")
        if least > most:
            raise ConfigError(f"[cluster] {role}_min is {least} and {role}_max {most}: raise the second")
    shares: dict[str, Any] = {
        name: getattr(config, name) for name in config.__struct_fields__ if name.endswith(("_cpus", "_gpus"))
    }
    for name, share in shares.items():
        if share is not None and (not math.isfinite(share) or (share > 1 and share != int(share))):
            raise ConfigError(f"[cluster] {name} is {share}: give a whole number, or a part of one")
