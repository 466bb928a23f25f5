"""What we say to the CUDA driver, played by a stand-in, and GPU memory of others where there is no GPU."""

import ctypes
from typing import Any

import msgspec
import pytest
import torch

from xgr_runtime.errors import ConfigError
from xgr_runtime.kv.shared_memory import CannotMap
from xgr_runtime.model.memory import cuda_ipc
from xgr_runtime.model.memory.cuda_ipc import HANDLE_BYTES, Driver, DriverError
from xgr_runtime.model.memory.device_memory import allocate, open_region
from xgr_runtime.wire.messages import DeviceRegion, HostRegion, ProcessId, Region

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
HANDLE = bytes(range(HANDLE_BYTES))
OWNER = ProcessId(5, 6)


class PlayedCuda:
    """libcuda as ctypes shows it: every call takes ctypes values and returns a code."""

    def __init__(self) -> None:
        self.code = 0
        self.allocated: dict[int, int] = {}
        self.opened: list[int] = []

    def cuMemAlloc_v2(self, pointer: Any, size: ctypes.c_size_t) -> int:
        if not self.code:
            pointer._obj.value = 0x7000_0000_0000 + 256 * len(self.allocated)
            self.allocated[pointer._obj.value] = size.value
        return self.code

    def cuMemFree_v2(self, pointer: ctypes.c_uint64) -> int:
        del self.allocated[pointer.value]
        return self.code

    def cuIpcGetMemHandle(self, handle: Any, pointer: ctypes.c_uint64) -> int:
        assert pointer.value in self.allocated
        ctypes.memmove(ctypes.addressof(handle._obj), HANDLE, HANDLE_BYTES)
        return self.code

    def cuIpcOpenMemHandle_v2(self, pointer: Any, handle: Any, flags: ctypes.c_uint) -> int:
        assert ctypes.sizeof(handle) == HANDLE_BYTES and bytes(handle) == HANDLE, "by value"
        assert flags.value == 1
        pointer._obj.value = 0x7100_0000_0000
        self.opened.append(pointer._obj.value)
        return self.code

    def cuIpcCloseMemHandle(self, pointer: ctypes.c_uint64) -> int:
        self.opened.remove(pointer.value)
        return self.code


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PlayedCuda:
    played = PlayedCuda()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: played)
    return played


def test_memory_is_taken_shown_opened_and_given_back(cuda: PlayedCuda) -> None:
    driver = Driver()
    pointer = driver.allocate(1 << 33)
    assert cuda.allocated == {pointer: 1 << 33}, "sizes and addresses of 64 bits"
    handle = driver.handle_of(pointer)
    assert handle == HANDLE, "zeros inside of it, too"
    opened = driver.open(handle)
    assert cuda.opened == [opened] and opened > 1 << 32
    driver.close(opened)
    driver.free(pointer)
    assert not cuda.allocated and not cuda.opened


def test_an_error_names_the_call(cuda: PlayedCuda) -> None:
    cuda.code = OUT_OF_MEMORY
    with pytest.raises(DriverError, match="cuMemAlloc_v2 gave error 2"):
        Driver().allocate(1)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int, device: torch.device) -> None:
        raise DriverError("cuMemAlloc_v2 gave error 2 of cuda.h")

    monkeypatch.setattr(cuda_ipc, "allocate", refuse)
    with pytest.raises(ConfigError, match="no 64 bytes of shared memory on cuda for weights"):
        allocate("weights", 64, torch.device("cuda"))


@pytest.mark.parametrize(
    ("handle", "says"),
    [(HANDLE, "does not see the GPU GPU-1"), (HANDLE[:-1], "63 bytes")],
    ids=["whole", "cut"],
)
def test_a_gpu_that_is_not_here_is_not_mapped(
    handle: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(CannotMap, match=says):
        open_region(DeviceRegion(OWNER, "GPU-1", handle, 64))


@pytest.mark.parametrize(
    "region", [DeviceRegion(OWNER, "GPU-1", HANDLE, 1 << 40), HostRegion(OWNER, 7, 8)], ids=["gpu", "host"]
)
@pytest.mark.parametrize("form", [msgspec.msgpack, msgspec.json], ids=["wire", "file"])
def test_regions_travel_as_they_are(region: Region, form: Any) -> None:
    assert form.decode(form.encode(region), type=Region) == region
