"""Memory as tensors that one process owns and others map: main memory or a GPU's, behind one interface.

What maps it may read it and nothing else, which main memory enforces and a GPU's does not.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.shared_memory import Segment, map_region
from xgr_runtime.model.memory import cuda_ipc
from xgr_runtime.wire.messages import HostRegion, Region


@dataclass(frozen=True)
class Block:
    """Memory of ours, and how others map it. It is there as long as `keeps` or a tensor on it is."""

    data: Tensor  # uint8 [size], zeros at first
    region: Region
    keeps: object = None


def allocate(name: str, size: int, device: torch.device) -> Block:
    """`size` bytes that others may map, all there at once. Raises ConfigError when there is too little."""
    try:
        if device.type == "cuda":
            return Block(*cuda_ipc.allocate(size, device))
        segment = Segment(name, size)
    except (OSError, cuda_ipc.DriverError, torch.OutOfMemoryError) as error:
        raise ConfigError(f"no {size} bytes of shared memory on {device} for {name}: {error}") from None
    return Block(torch.frombuffer(segment.memory, dtype=torch.uint8), segment.region, segment)


def open_region(region: Region) -> Tensor:
    """Another process's memory, uint8 [size], to read. Raises `CannotMap`."""
    if isinstance(region, HostRegion):
        return reading(map_region(region))
    return cuda_ipc.open_region(region)


def reading(buffer: object) -> Tensor:
    """A buffer that is not to be written as uint8 [n], not copied; [0] bytes are none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8)
