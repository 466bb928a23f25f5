"""What a worker without a role has ready: one model in one memory, an engine for each role it may take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec.structs import replace

import decode_worker.start
import prefill_worker.start
from decode_worker.start import DecodeParts
from prefill_worker.start import PrefillParts
from xgr_runtime.config import AnyConfig, DecodeConfig, PrefillConfig
from xgr_runtime.process.lifecycle import Lifecycle
from xgr_runtime.scheduling.cost_model import Tried

C = TypeVar("C", PrefillConfig, DecodeConfig)
P = TypeVar("P", PrefillConfig, DecodeConfig, AnyConfig)


@dataclass(frozen=True)
class Warm:
    """The parts of each role that it is warmed for, and what launches took that were tried."""

    prefill: PrefillParts | None = None
    decode: DecodeParts | None = None
    prompts_tried: Sequence[Tried] = field(default_factory=list)
    searches_tried: Sequence[Tried] = field(default_factory=list)


def warm(config: AnyConfig, lifecycle: Lifecycle) -> Warm:
    """Load and warm up what `config.role` asks for; both roles share the weights and the memory for KV.

    Raises `StartupError`.
    """
    prefill, decode = None, None
    prompts: Sequence[Tried] = []
    searches: Sequence[Tried] = []
    if config.role != "decode":
        own = as_role(PrefillConfig, config)
        prefill = prefill_worker.start.load_parts(own, lifecycle)
        prefill.warm_up(own, lifecycle)
        prompts = prefill.try_ahead(own)
    if config.role != "prefill":
        mine = as_role(DecodeConfig, config)
        decode = decode_worker.start.load_parts(mine, lifecycle, prefill.model if prefill else None)
        decode.warm_up(mine, lifecycle)
        searches = decode.try_ahead(mine)
    return Warm(prefill, decode, prompts, searches)


def as_role(kind: type[C], config: AnyConfig) -> C:
    """The settings of a worker of that kind, with this one's values."""
    values: dict[str, Any] = {name: getattr(config, name) for name in kind.__struct_fields__}
    return kind(**values)


def at_place(config: P, own: AnyConfig) -> P:
    """The settings of a place for one who is on another device than the worker that had it."""
    return replace(config, device=own.device, ready_fd=own.ready_fd)
