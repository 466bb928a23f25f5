"""Where work runs: launches, captured graphs, pinned staging and events, behind one small interface.

Engines that enqueue work and ask later whether it is done are written against `Device`. On `HostDevice` work
is done when the call returns and capturing changes nothing: the same engines run, and are tested, on a CPU.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgr_runtime.errors import Fatal

Work = Callable[[], None]


class DeviceLost(Fatal):
    """The device does not answer this process any more, whatever it is asked."""


@contextmanager
def losing_the_device() -> Iterator[None]:
    """Raises DeviceLost for an error after which the device fails every call of this process.

    torch says which errors are the device's; other libraries raise plain ones for the same, so it is asked.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or not _answers():
            raise DeviceLost(str(error).splitlines()[0]) from error
        raise


def _answers() -> bool:
    """Whether the GPU in use, if any, still does what this process asks."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


class Event(Protocol):
    """A mark in the queue of launches."""

    def record(self) -> None:
        """Set the mark behind all that is queued now. Not for captured work: see `Progress`."""
        ...

    def done(self) -> bool:
        """Whether the device has passed the mark; True if it was never recorded."""
        ...

    def wait(self) -> None:
        """Block the caller until `done`."""
        ...


class Device(Protocol):
    """One processor and its queue."""

    where: torch.device

    def settle(self) -> None:
        """Wait for all that was ever begun on the device, the queue or not: weights, buffers of zeros."""
        ...

    def running(self) -> AbstractContextManager[object]:
        """Launches inside go to the queue, in order."""
        ...

    def alongside(self) -> AbstractContextManager[object]:
        """Copies inside overlap with what is queued; launches queued afterwards wait for them."""
        ...

    def apart(self) -> AbstractContextManager[object]:
        """Copies inside overlap with what is queued, and no launch waits for them: an event tells their end.

        Memory that is taken inside belongs to these copies: free it only when nothing reads it any more.
        """
        ...

    def capture(self, work: Work) -> Work:
        """`work` as one launch: it may be run now, reads and writes the same memory every time, and must
        not look at any value. Call it inside `running`."""
        ...

    def event(self) -> Event: ...

    def staging(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros in host memory that copies to and from the device do not wait for."""
        ...

    def reserved_bytes(self) -> int:
        """Device memory that this process holds, caches of the allocator included; 0 where nobody counts."""
        ...

    def free_bytes(self) -> float:
        """Device memory that nobody holds; infinite where nobody counts."""
        ...


class CudaDevice:
    """A GPU of this process: a stream for launches, two for copies, one memory pool for all graphs."""

    def __init__(self, index: int) -> None:
        self.where = torch.device("cuda", index)
        torch.cuda.set_device(self.where)
        self._stream = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._apart = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._graphs = torch.cuda.graph_pool_handle()

    def settle(self) -> None:
        torch.cuda.synchronize(self.where)

    def running(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    @contextmanager
    def alongside(self) -> Iterator[None]:
        with torch.cuda.stream(self._copies):
            yield
        self._stream.wait_stream(self._copies)

    def apart(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._apart)

    def capture(self, work: Work) -> Work:
        work()  # libraries choose and compile their kernels now: none of that may happen inside a capture
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: they run one after the other, so their scratch memory may be the same.
        with _without_collector(), torch.cuda.graph(graph, pool=self._graphs, stream=self._stream):
            work()
        replay: Work = graph.replay
        replay()  # the first one loads the graph onto the device
        self._stream.synchronize()
        return replay

    def event(self) -> Event:
        return CudaEvent()

    def staging(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, pin_memory=True)

    def reserved_bytes(self) -> int:
        return torch.cuda.memory_reserved(self.where)

    def free_bytes(self) -> float:
        free, _ = torch.cuda.mem_get_info(self.where)
        return float(free)


@contextmanager
def _without_collector() -> Iterator[None]:
    """What garbage does as it goes, such as waiting for the device, would void a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaEvent:
    """A mark in the current stream of a GPU."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record()

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()


class HostDevice:
    """A CPU: nothing is ever queued."""

    where = torch.device("cpu")

    def settle(self) -> None:
        pass

    def running(self) -> AbstractContextManager[object]:
        return nullcontext()

    def alongside(self) -> AbstractContextManager[object]:
        return nullcontext()

    def apart(self) -> AbstractContextManager[object]:
        return nullcontext()

    def capture(self, work: Work) -> Work:
        return work

    def event(self) -> Event:
        return PassedEvent()

    def staging(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype)

    def reserved_bytes(self) -> int:
        return 0

    def free_bytes(self) -> float:
        return math.inf


class PassedEvent:
    """A mark where nothing is ever queued."""

    def record(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Inputs:
    """Named vectors of integers that captured work reads, sent from the host in one copy.

    `sizes` are their lengths. What is filled into one of the `slots` waits in host memory until it is sent:
    meanwhile launches that were sent from other slots run, and read what they were sent.
    """

    def __init__(self, device: Device, sizes: Mapping[str, int], slots: int) -> None:
        ends = np.cumsum([0, *sizes.values()])
        total = int(ends[-1])
        self._slices = {
            name: slice(int(a), int(b)) for name, a, b in zip(sizes, ends, ends[1:], strict=False)
        }
        self._values = torch.zeros(total, dtype=torch.int64, device=device.where)
        self._staging = [(device.staging(total, dtype=torch.int64), device.event()) for _ in range(slots)]

    def __getitem__(self, name: str) -> Tensor:
        """The vector `name` in device memory, int64, always the same memory."""
        return self._values[self._slices[name]]

    def fill(self, slot: int, **vectors: NDArray[np.int64]) -> None:
        """Keep `vectors` for `send`, each at most as long as its place; the rest of a place becomes 0.

        Waits only while what was sent from the slot before has not been copied.
        """
        staging, copied = self._staging[slot]
        copied.wait()
        host = staging.numpy()
        host[:] = 0
        for name, vector in vectors.items():
            place = host[self._slices[name]]
            place[: len(vector)] = vector

    def send(self, slot: int) -> None:
        """Queue the copy of what was filled into `slot`: launches behind it read that."""
        staging, copied = self._staging[slot]
        self._values.copy_(staging, non_blocking=True)
        copied.record()


class Progress:
    """Marks inside captured work, which the host can see pass.

    A mark copies the launch's number, which the work reads at `number`, into pinned memory: a value says
    beyond doubt which launch it is from, where an event would still stand as its last launch left it.
    """

    def __init__(self, device: Device, marks: int, number: Tensor) -> None:
        """`number` [1] int64 in device memory; numbers of launches ascend from 1."""
        self._number = number
        self._marks = device.staging(marks, dtype=torch.int64)

    def mark(self, index: int) -> None:
        """Call it inside the work, behind what the mark stands for."""
        self._marks[index : index + 1].copy_(self._number, non_blocking=True)

    def passed(self, index: int, number: int) -> bool:
        """Whether launch `number` has come to the mark `index`."""
        return int(self._marks[index]) >= number
