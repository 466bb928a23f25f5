"""FlashInfer's own planner, built from the headers of the installed package with a C++ compiler alone.

It puts the library's plans in the place of those of `flashinfer_stand_in`, so that `PagedAttention` plans as
on a GPU of the given size, and reads back what a plan tells the kernels to do.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flashinfer_stand_in
import pytest
import torch
from torch import Tensor

from xgr_kernels.attention.paged.rules import AttentionSizes

CUDA_HEADERS = ("cuda_bf16", "cuda_device_runtime_api", "cuda_fp16", "cuda_fp8", "cuda_runtime")
# What a plan returns, in its order, and what the planner asks for.
_FA2 = (
    "tiles rows rows_at tile_rows request_at q_tile_at kv_tile_at merge_at o_at chunk_at v_at s_at valid_at"
)
FA2_NAMES = (*_FA2.split(), "captured", "split")
_FA3 = "q_tile_at row_at page_at rows_at length_at head_at work_at request_at"
FA3_NAMES = (*_FA3.split(), "one_head")
SIZES = "multiprocessors major shared_bytes rows requests q_heads kv_heads head_dim page_size causal"


@dataclass(frozen=True)
class Gpu:
    """What the planner asks of a device."""

    multiprocessors: int
    capability: tuple[int, int]
    shared_bytes: int  # of a block at most


class Sizes(ctypes.Structure):
    """As in flashinfer_planner.cpp."""

    _fields_ = [(name, ctypes.c_int32) for name in SIZES.split()]


def include_folder() -> Path:
    """The headers of the installed package; skips the test where there are none."""
    spec = importlib.util.find_spec("flashinfer")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [folder for place in places if (folder := Path(place) / "data" / "include").is_dir()]
    if not found:
        pytest.skip("needs the package flashinfer-python (extra cuda) for the headers of its planner; no GPU")
    return found[0]


def build(folder: Path) -> ctypes.CDLL:
    """The planner as a library in `folder`; two seconds. Skips the test without a C++ compiler."""
    include, compiler = include_folder(), shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler (c++ or g++)")
    for name in (*CUDA_HEADERS, "cuda_runtime_api", "driver_types"):
        (folder / f"{name}.h").touch()
    scheduler = (include / "flashinfer/attention/scheduler.cuh").read_text(encoding="utf-8")
    newer = ["-DUNIFORM_Q_LEN"] if "uniform_q_len" in scheduler else []
    source, target = Path(__file__).with_suffix(".cpp"), folder / "planner.so"
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", *newer, f"-I{folder}", f"-I{include}"]
    subprocess.run([compiler, *flags, source, "-o", target], check=True, timeout=240)
    return ctypes.CDLL(str(target))


def take_its_place(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, gpu: Gpu) -> None:
    """From here on `import flashinfer` gives the stand-in with the library's plans for `gpu`."""

    class Wrapper(flashinfer_stand_in.BatchPrefillWithPagedKVCacheWrapper):
        planner, device_facts = library, gpu

        def plan(self, qo_indptr: Tensor, paged_kv_indptr: Tensor, *args: Any, **kwargs: Any) -> None:
            super().plan(qo_indptr, paged_kv_indptr, *args, **kwargs)
            self._plan_info = self._library_plan(qo_indptr, paged_kv_indptr, kwargs["seq_lens"])

        def _lay_out(self) -> list[int]:
            return []  # the library's comes behind it

        def _library_plan(self, rows: Tensor, pages: Tensor, lengths: Tensor) -> list[int]:
            s, gpu, most = self._sizes, self.device_facts, self._max_total_num_rows or 0
            sizes = Sizes(
                gpu.multiprocessors, gpu.capability[0], gpu.shared_bytes, most, len(lengths), s.q_heads
            )
            sizes.kv_heads, sizes.head_dim, sizes.page_size = s.kv_heads, s.head_dim, s.page_size
            sizes.causal = self._causal
            pinned, plan = self._pin_memory_int_workspace_buffer, self._int_workspace_buffer
            assert pinned.numel() >= plan.numel()
            info, error = (ctypes.c_int64 * 32)(), ctypes.create_string_buffer(1000)
            count = self.planner.flashinfer_plan(
                ctypes.byref(sizes), int(self._backend == "fa3"),
                ctypes.c_size_t(self._float_workspace_buffer.numel()), _address(plan), _address(pinned),
                ctypes.c_size_t(plan.numel()), _address(rows), _address(pages), _address(lengths),
                info, error, ctypes.c_size_t(len(error)),
            )  # fmt: skip
            if count < 0:
                raise RuntimeError(error.value.decode())
            return list(info[:count])

    stream = flashinfer_stand_in.install(monkeypatch)
    Wrapper.stream = stream
    monkeypatch.setattr("flashinfer.BatchPrefillWithPagedKVCacheWrapper", Wrapper)
    for module in ("flashinfer_stand_in", "xgr_kernels.attention.paged.workspace"):
        monkeypatch.setattr(f"{module}.device_facts", lambda _: (gpu.multiprocessors, gpu.capability))


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


# ---- what a plan says --------------------------------------------------------------------------------------

Work = tuple[int, int, int, int]
"""(request, head, tile of its rows, tile of its keys)"""


def read(plan: Tensor, at: int, count: int, dtype: torch.dtype = torch.int32) -> list[Any]:
    """`count` numbers of a plan's bytes."""
    return plan[at : at + count * dtype.itemsize].view(dtype).tolist()


def fa2_work(info: list[int], plan: Tensor, sizes: AttentionSizes) -> Counter[Work]:
    """What FA2's programs do by a plan; all of its KV heads do the same."""
    at = dict(zip(FA2_NAMES, info, strict=True))
    request, q_tile, kv_tile = (
        read(plan, at[name], at["tiles"]) for name in ("request_at", "q_tile_at", "kv_tile_at")
    )
    valid = read(plan, at["valid_at"], at["tiles"], torch.bool)
    return Counter(
        (request[i], head, q_tile[i], kv_tile[i])
        for i in range(at["tiles"])
        if valid[i]
        for head in range(sizes.kv_heads)
    )


def fa3_work(info: list[int], plan: Tensor, multiprocessors: int) -> Counter[Work]:
    """What FA3's programs do by a plan; it does not split keys."""
    at = dict(zip(FA3_NAMES, info, strict=True))
    assert not at["one_head"], "a plan of so many tiles holds for every head"
    ends = read(plan, at["work_at"], multiprocessors + 1)
    assert ends == sorted(ends) and ends[0] == 0
    request, head, q_tile = (read(plan, at[n], ends[-1]) for n in ("request_at", "head_at", "q_tile_at"))
    return Counter(zip(request, head, q_tile, [0] * ends[-1], strict=True))
