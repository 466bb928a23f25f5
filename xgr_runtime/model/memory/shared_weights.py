"""One copy of a model's weights for two processes: the prefill worker owns it, the decode worker maps it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.published import PublishedMemory, SharedTensor, SharedWeights, wait_for
from xgr_runtime.kv.shared_memory import CannotMap
from xgr_runtime.model.memory.device_memory import Block, allocate, open_region

_ALIGNED = 256  # bytes: kernels may ask for it


def export_weights(module: nn.Module) -> tuple[SharedWeights, Block]:
    """Move the module's weights into memory that others may map, as long as the block is kept.

    Weights that are not contiguous stay where they are. Raises ConfigError when there is too little memory.
    """
    weights = dict(_shareable(module))
    tensors, size = {}, 0
    for name, weight in weights.items():
        tensors[name] = SharedTensor(size, list(weight.shape), _name_of(weight.dtype))
        size += -(-weight.nbytes // _ALIGNED) * _ALIGNED
    block = allocate("xgr weights", size, next(iter(weights.values())).device)
    for name, weight in weights.items():
        place = _view(block.data, tensors[name], weight.dtype)
        place.copy_(weight.data)
        weight.data = place
    give_back_unused()
    return SharedWeights(block.region, tensors), block


def adopt_weights(module: nn.Module, shared: SharedWeights) -> None:
    """Let the module use those weights in the place of its own, which are freed.

    Raises ConfigError where they are not those of the same model, `CannotMap` where they are out of reach.
    """
    weights = dict(_shareable(module))
    found = {name: (list(w.shape), _name_of(w.dtype)) for name, w in weights.items()}
    offered = {name: (tensor.shape, tensor.dtype) for name, tensor in shared.tensors.items()}
    if found != offered:
        other = min(name for name in found.keys() | offered.keys() if found.get(name) != offered.get(name))
        theirs, ours = offered.get(other), found.get(other)
        raise ConfigError(f"the prefill worker's weight {other} is of {theirs}, this worker's of {ours}")
    data = open_region(shared.region)
    for name, weight in weights.items():
        weight.data = _view(data, shared.tensors[name], weight.dtype)
    give_back_unused()


class WeightSharing:
    """What a worker does with its weights once they are loaded: share them, take another's, or nothing."""

    def __init__(self, publishes: bool, memory_of: str, stopping: Callable[[], bool]) -> None:
        self.shared: SharedWeights | None = None
        self.taken_from: PublishedMemory | None = None
        self._publishes = publishes
        self._memory_of = memory_of
        self._stopping = stopping
        self._block: Block | None = None  # kept, so that a reader that comes later can map it

    @property
    def shares(self) -> bool:
        """Whether there is another worker with the same weights."""
        return self._publishes or bool(self._memory_of)

    def place(self, module: nn.Module) -> None:
        """To be called before anything else refers to the module's weights. Raises ConfigError."""
        if self._publishes:
            self.shared, self._block = export_weights(module)
        elif self._memory_of:
            published = self.taken_from = wait_for(Path(self._memory_of), self._stopping)
            try:
                adopt_weights(module, published.weights) if published.weights else None
            except CannotMap as error:
                raise ConfigError(f"--memory-of {self._memory_of}: {error}; use --layout split") from None


def _shareable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights by name, those that are tied once."""
    return ((name, weight) for name, weight in module.named_parameters() if weight.is_contiguous())


def _view(data: Tensor, tensor: SharedTensor, dtype: torch.dtype) -> Tensor:
    """The tensor inside of uint8 `data`."""
    count = torch.Size(tensor.shape).numel() * dtype.itemsize
    return data[tensor.offset : tensor.offset + count].view(dtype).view(tensor.shape)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def give_back_unused() -> None:
    """What torch keeps of a GPU for later, the other process needs now."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
