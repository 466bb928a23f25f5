"""The memory that a KV pool lies in: a worker's own, its own and open to readers, or another worker's.

Beside the keys and values there is a number for every page, its generation: see `xgr_runtime.kv.pages`.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.pages import Generations
from xgr_runtime.kv.shared_memory import CannotMap, Segment, map_region
from xgr_runtime.model.memory.device_memory import allocate, open_region
from xgr_runtime.wire.messages import ModelIdentity, SharedKv

SCRATCH = 1  # pages that belong to no prompt: rows of padding may write there
_ID = 8  # bytes in front of the generations


@dataclass(frozen=True)
class KvMemory:
    """Bytes of a pool: kv is [2, layers, pages + 1, page_size, Hkv, D] in the model's dtype."""

    kv: Tensor  # uint8, flat
    generations: Generations  # [pages that prompts may lie in]
    shared: SharedKv | None = None  # how others map it, or how we did
    keeps: object = None  # what must live as long as it


def private_memory(identity: ModelIdentity, pages: int, page_size: int, device: torch.device) -> KvMemory:
    """Memory of this process alone."""
    size = (pages + SCRATCH) * page_size * identity.token_bytes
    # full() touches every page of memory now: too little of it ends the start, not a request, and the first
    # requests do not pay for page faults.
    return KvMemory(torch.full((size,), 0, dtype=torch.uint8, device=device), np.zeros(pages, np.uint32))


def exported_memory(identity: ModelIdentity, pages: int, page_size: int, device: torch.device) -> KvMemory:
    """Memory of this process that others of this machine may read. Raises `ConfigError`."""
    kv = allocate("xgr prompt KV", (pages + SCRATCH) * page_size * identity.token_bytes, device)
    try:
        numbers = Segment("xgr page generations", _ID + 4 * pages)
    except OSError as error:
        raise ConfigError(f"no shared memory for the generations of {pages} pages: {error}") from None
    id = secrets.randbits(62)
    np.frombuffer(numbers.memory, np.uint64, 1)[0] = id
    generations = np.frombuffer(numbers.memory, np.uint32, pages, offset=_ID)
    shared = SharedKv(id, pages, page_size, kv.region, numbers.region)
    return KvMemory(kv.data, generations, shared, (kv, numbers))


def mapped_memory(shared: SharedKv, identity: ModelIdentity) -> KvMemory:
    """Another worker's memory, to read; `identity` is that of both. Raises `CannotMap`."""
    size = (shared.pages + SCRATCH) * shared.page_size * identity.token_bytes
    sound = shared.pages > 0 and shared.page_size > 0
    if not sound or shared.kv.size != size or shared.generations.size != _ID + 4 * shared.pages:
        raise CannotMap("its memory has other sizes than its model")
    numbers = map_region(shared.generations)
    if int(np.frombuffer(numbers, np.uint64, 1)[0]) != shared.id:
        raise CannotMap("what it names as its memory is another's")
    generations = np.frombuffer(numbers, np.uint32, shared.pages, offset=_ID)
    return KvMemory(open_region(shared.kv), generations, shared)
