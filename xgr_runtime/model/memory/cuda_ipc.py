"""GPU memory that several processes map: allocation and IPC handles, straight from the CUDA driver.

Memory of torch's allocator may lie inside of a larger block, or in segments that have no handle, and torch's
own sharing counts references in files. Memory taken here has one owner, one handle and no file.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from xgr_runtime.kv.shared_memory import CannotMap, this_process
from xgr_runtime.wire.messages import DeviceRegion

HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE, cuda.h
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class DriverError(Exception):
    """The CUDA driver refused a call."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class Driver:
    """The calls of libcuda that we need, on the current device."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._cuda: Any = ctypes.CDLL(library)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, aligned to 256."""
        pointer = ctypes.c_uint64()
        self._check("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._check("cuMemFree_v2", ctypes.c_uint64(pointer))

    def handle_of(self, pointer: int) -> bytes:
        """What another process opens. `pointer` is one that `allocate` gave."""
        handle = _Handle()
        self._check("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(pointer))
        return bytes(handle)

    def open(self, handle: bytes) -> int:
        """The address of another process's memory."""
        pointer = ctypes.c_uint64()
        given = _Handle.from_buffer_copy(handle)
        self._check("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), given, ctypes.c_uint(_LAZY_PEER_ACCESS))
        return pointer.value

    def close(self, pointer: int) -> None:
        self._check("cuIpcCloseMemHandle", ctypes.c_uint64(pointer))

    def _check(self, call: str, *arguments: object) -> None:
        code = getattr(self._cuda, call)(*arguments)
        if code:
            raise DriverError(f"{call} gave error {code} of cuda.h")


class _Memory:
    """Device memory in the form that torch takes without a copy; given back with the last tensor on it."""

    def __init__(self, driver: Driver, pointer: int, size: int, device: torch.device, owned: bool) -> None:
        self._driver, self._pointer, self._device, self._owned = driver, pointer, device, owned
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
        }

    def __del__(self) -> None:
        with torch.cuda.device(self._device):
            torch.cuda.synchronize(self._device)  # nothing that still runs reads it
            (self._driver.free if self._owned else self._driver.close)(self._pointer)


def allocate(size: int, device: torch.device) -> tuple[Tensor, DeviceRegion]:
    """`size` bytes of zeros on a GPU, uint8 [size], and how others map them. Raises DriverError."""
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # the driver's calls need the context that torch makes
        driver = Driver()
        pointer = driver.allocate(size)
        data = torch.as_tensor(_Memory(driver, pointer, size, device, owned=True), device=device)
        data.zero_()
        torch.cuda.synchronize(device)
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return data, DeviceRegion(this_process(), uuid, driver.handle_of(pointer), size)


def open_region(region: DeviceRegion) -> Tensor:
    """Another process's memory, uint8 [size], on the GPU where it lies. Raises `CannotMap`."""
    if len(region.handle) != HANDLE_BYTES:
        raise CannotMap(f"its CUDA IPC handle has {len(region.handle)} bytes")
    device = torch.device("cuda", _index_of(region.device))
    try:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)
            driver = Driver()
            pointer = driver.open(region.handle)
            return torch.as_tensor(_Memory(driver, pointer, region.size, device, owned=False), device=device)
    except (DriverError, OSError, RuntimeError) as error:
        raise CannotMap(f"its GPU memory cannot be mapped: {error}") from None


def _index_of(uuid: str) -> int:
    """Which of the GPUs that this process sees has that UUID."""
    for index in range(torch.cuda.device_count()):
        if str(torch.cuda.get_device_properties(index).uuid) == uuid:
            return index
    raise CannotMap(f"this process does not see the GPU {uuid}")
