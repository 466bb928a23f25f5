"""Compiles every Triton kernel for the GPUs that people have, on a machine that has none.

To add a kernel: write a function below that yields its cases, and name it in `CASES`. A case names the jitted
function, the type of each argument by its parameter name, and the value of each constexpr; every parameter is
in one of the two. Yield one case for each set of constexprs that production launches, and for each dtype.
(Triton looks annotations of a kernel up: of globals it takes `tl.tensor`, `int`, `float` and `tl.constexpr`.)

    def my_kernel() -> Iterator[Case]:
        for BLOCK in (512, 1024):
            yield Case(
                kernel="xgr_kernels.my_folder.cuda_kernels:my_kernel",
                types={"p_logits": "*fp32", "p_count": "*i32", "stride": "i64", "scale": "fp32"},
                constants={"BLOCK": BLOCK, "LEGAL": True},
                warps=4,
            )

`tests/kernels/test_compile_for_gpus.py` runs this file in a process of its own, for what was imported under
TRITON_INTERPRET=1 cannot be compiled. It fails if a jitted function of `xgr_kernels` is in no case; functions
that a kernel calls are compiled with it and count.
By hand: `python tests/support/triton_gate.py [WORD]` compiles the cases whose id contains WORD.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

ARCHITECTURES = (90, 80)  # compute capabilities: H100 and H200; A100


@dataclass(frozen=True)
class Case:
    """One way to specialise one kernel. Pointers count as 16-byte aligned, as torch's tensors are."""

    kernel: str  # module:function
    types: dict[str, str] = field(hash=False)
    constants: dict[str, Any] = field(hash=False)
    warps: int = 4
    unaligned: tuple[str, ...] = ()  # pointers that may point into the middle of a tensor
    stack_bytes: int = 0  # per thread; more than that is taken for values that spill
    multiples_of_16: tuple[str, ...] = ()  # integers that are, such as strides; triton tells them apart too
    note: str = ""  # what tells it from a case of the same types and constexprs

    @property
    def id(self) -> str:
        """The function, its element types, its constexprs."""
        elements = sorted({t[1:] for t in self.types.values() if t.startswith("*")})
        constants = [f"{name}={value}" for name, value in self.constants.items()]
        note = [self.note] if self.note else []
        return "-".join([self.kernel.split(":")[1], *elements, *constants, *note])


@dataclass(frozen=True)
class Built:
    """What a case became on one architecture. Bytes of stack and of spills are per thread."""

    case: str
    architecture: int
    ptx: str  # its .target line
    cubin_bytes: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    wide_loads: int  # instructions that load 16 bytes of global memory


def tail_attention() -> Iterator[Case]:
    """Heads 16/8, 32/8 and 40/8, each head dimension, T of depth 3 and 4, and the most that is taken."""
    from xgr_kernels.attention.tail.cuda import block_sizes

    steps = ["q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "tail_token", "tail_row", "tail_head"]
    steps += ["anc_row", "anc_token", "rows_row", "tail_len_row"]
    for dtype, integer, Hq, GROUP, D, T in [
        ("bf16", "i32", 16, 2, 128, 1),
        ("bf16", "i64", 32, 4, 128, 2),
        ("fp16", "i32", 40, 5, 64, 2),
        ("bf16", "i32", 3, 3, 96, 8),
        ("fp32", "i64", 8, 1, 256, 0),
    ]:
        tensors = dict.fromkeys(["p_q", "p_k", "p_v", "p_tail_k", "p_tail_v", "p_o"], f"*{dtype}")
        integers = dict.fromkeys(["p_anc", "p_rows", "p_tail_len"], f"*{integer}")
        BLOCK_H, BLOCK_D = block_sizes(Hq, D)
        yield Case(
            kernel="xgr_kernels.attention.tail.cuda:tail_attention_kernel",
            types={
                **tensors,
                **integers,
                "p_lse2": "*fp32",
                "scale2": "fp32",
                **dict.fromkeys(steps, "i32"),
            },
            constants={
                "Hq": Hq,
                "GROUP": GROUP,
                "D": D,
                "T": T,
                "BLOCK_H": BLOCK_H,
                "BLOCK_D": BLOCK_D,
            },
            unaligned=tuple(integers),
            multiples_of_16=tuple(steps[:9]),
        )


def paged_attention() -> Iterator[Case]:
    """Where FlashInfer has no kernel: head size 96, and float32 at the largest head size."""
    import torch

    from xgr_kernels.attention.paged import AttentionSizes
    from xgr_kernels.attention.paged.own import launch_constants

    for element, dtype, Hq, Hkv, D, causal in [
        ("*bf16", torch.bfloat16, 32, 8, 96, False),
        ("*fp32", torch.float32, 24, 8, 128, True),
    ]:
        sizes = AttentionSizes(Hq, Hkv, D, 16, dtype, torch.device("cpu"), 1.0)
        strides = dict.fromkeys(["q_row", "q_head", "page", "token", "kv_head"], "i32")
        yield Case(
            kernel="xgr_kernels.attention.paged.cuda_kernels:paged_attention_kernel",
            types={
                **dict.fromkeys(["p_q", "p_k", "p_v", "p_o"], element),
                **dict.fromkeys(["p_tiles", "p_pages"], "*i32"),
                "p_lse2": "*fp32",
                "scale2": "fp32",
                **strides,
            },
            constants=launch_constants(sizes, causal),
            stack_bytes=64 if dtype == torch.float32 else 0,  # a few values spill on an A100
            multiples_of_16=tuple(strides),
        )


def beam_select() -> Iterator[Case]:
    """Every launch of a selection: many requests and few, narrow and wide, without and with a tail."""
    from xgr_kernels.beam_select import cuda, cuda_kernels

    sizes = ["V", "share", "splits", "o_logits", "o_beam"]
    types = dict.fromkeys(sizes, "i32") | dict.fromkeys(["p_table", "p_threshold", "p_keys"], "*i64")
    types |= dict.fromkeys(["p_logits", "p_top", "p_total", "p_lse", "p_maxima", "p_ceiling"], "*fp32")
    seen: set[str] = set()
    for requests, max_width, T in [(64, 128, 0), (8, 512, 2), (1, 4096, 6)]:
        for name, constants in cuda.launch_constants(
            cuda.Tuning.of(requests, max_width), max_width, T
        ).items():
            arguments = [x for x in getattr(cuda_kernels, name).arg_names if x not in constants]
            warps = constants.pop("num_warps", 4)
            case = Case(
                kernel=f"xgr_kernels.beam_select.cuda_kernels:{name}",
                types={x: types.get(x, "*i32") for x in arguments},
                constants=constants,
                warps=warps,
                multiples_of_16=("V", "share", "o_logits"),
            )
            if case.id not in seen:
                yield case
            if not seen and name == "row_statistics":  # rows of any length, wherever they begin
                yield replace(case, unaligned=("p_logits",), multiples_of_16=(), note="any row")
            seen.add(case.id)


def row_ops() -> Iterator[Case]:
    """Published widths, in each dtype, and one that no vector of 16 bytes divides, off its alignment."""
    yield from residual_norms()
    yield from norms_and_rotations()
    for dtype, SIZE in [("bf16", 6144), ("fp16", 3072), ("fp32", 4864), ("bf16", 1003)]:
        types = dict.fromkeys(["p_gate_up", "p_out"], f"*{dtype}")
        yield Case(
            kernel="xgr_kernels.row_ops.cuda_kernels:gated_silu_kernel",
            types=types,
            constants={"SIZE": SIZE, "BLOCK": 1024},
            unaligned=tuple(types) if SIZE % 16 else (),
        )


def residual_norms() -> Iterator[Case]:
    from xgr_kernels.row_ops.cuda import warps_for

    widths = [("bf16", 2048, 2048, True), ("bf16", 2560, 4096, False), ("fp32", 896, 1024, True)]
    widths += [("fp16", 8192, 8192, True), ("bf16", 1003, 1024, True), ("bf16", 16384, 16384, True)]
    for dtype, H, BLOCK, ADDS in widths:
        types = dict.fromkeys(["p_x", "p_delta", "p_weight", "p_out"], f"*{dtype}")
        yield Case(
            kernel="xgr_kernels.row_ops.cuda_kernels:residual_norm_kernel",
            types=types | {"eps": "fp32"},
            constants={"H": H, "ADDS": ADDS, "BLOCK": BLOCK},
            warps=warps_for(BLOCK),
            unaligned=tuple(types) if H % 16 else (),
        )


def norms_and_rotations() -> Iterator[Case]:
    """Heads of Qwen 3, Llama and Qwen 2 in decode and in prefill, and a size that is no power of two."""
    from xgr_kernels.row_ops.cuda import HEAD_WARPS, block_sizes

    rows = ["p_qkv", "p_q_norm", "p_k_norm", "p_q", "p_k", "p_v"]
    for dtype, Hq, Hkv, D, NORMED, STORES in [
        ("bf16", 16, 8, 128, True, False),
        ("bf16", 16, 8, 128, True, True),
        ("fp16", 32, 8, 64, False, True),
        ("fp32", 14, 2, 64, False, False),
        ("bf16", 3, 1, 90, True, True),
    ]:
        BLOCK_H, BLOCK_D = block_sizes(D)
        types = dict.fromkeys(rows, f"*{dtype}") | {"p_cos": "*fp32", "p_sin": "*fp32"}
        yield Case(
            kernel="xgr_kernels.row_ops.cuda_kernels:norm_and_rotate_kernel",
            types=types | {"p_slots": "*i64" if STORES else "*fp32", "eps": "fp32"},
            constants={
                "Hq": Hq,
                "Hkv": Hkv,
                "HALF": D // 2,
                "NORMED": NORMED,
                "STORES": STORES,
                "BLOCK_H": BLOCK_H,
                "BLOCK_D": BLOCK_D,
            },
            warps=HEAD_WARPS,
            # slots of a bucket lie in the middle of all inputs; v that is not stored in the middle of qkv
            unaligned=tuple(types) if D % 16 else ("p_slots",) if STORES else ("p_v", "p_slots"),
        )


CASES: list[Case] = [*tail_attention(), *paged_attention(), *beam_select(), *row_ops()]


def kernels_in_package() -> set[str]:
    """Every jitted function of xgr_kernels, as module:function. Imports all `cuda*` modules."""
    from triton.runtime import KernelInterface

    import xgr_kernels

    found = set()
    for module in pkgutil.walk_packages(xgr_kernels.__path__, "xgr_kernels."):
        if module.name.rsplit(".", 1)[1].startswith("cuda"):
            names = vars(importlib.import_module(module.name))
            kernels = [value.fn for value in names.values() if isinstance(value, KernelInterface)]
            found |= {f"{fn.__module__}:{fn.__name__}" for fn in kernels}
    return {name for name in found if name.startswith("xgr_kernels.")}


def build(case: Case, architecture: int) -> tuple[Built, set[str]]:
    """Compiles a case, and names the jitted functions that went into it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = case.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    given = {**case.types, **dict.fromkeys(case.constants, "constexpr")}
    names = set(kernel.arg_names)
    assert set(given) == names, f"{case.id}: missing {names - set(given)}, unknown {set(given) - names}"
    signature = {name: given[name] for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, type_) in enumerate(signature.items())
        if name in case.multiples_of_16 or (type_.startswith("*") and name not in case.unaligned)
    }
    source = ASTSource(kernel, signature, constexprs=case.constants, attrs=aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": case.warps}
    )
    target = re.search(r"^\.target (\S+)", made.asm["ptx"], re.MULTILINE)
    usage = resource_usage(made.asm["cubin"])
    built = Built(
        case.id,
        architecture,
        target.group(1) if target else "",
        len(made.asm["cubin"]),
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        made.metadata.shared,
        len(re.findall(r"ld\.global\S*\.v4\.(?:b|f)32", made.asm["ptx"])),
    )
    return built, functions_of(kernel)


def functions_of(kernel: Any) -> set[str]:
    """A kernel and all that it calls, as module:function."""
    from triton.runtime import JITFunction

    found = {f"{kernel.fn.__module__}:{kernel.fn.__name__}"}
    for called in {**kernel.fn.__globals__}.values():
        if isinstance(called, JITFunction) and called is not kernel and _calls(kernel, called):
            found |= functions_of(called)
    return found


def _calls(kernel: Any, called: Any) -> bool:
    return called.fn.__name__ in kernel.fn.__code__.co_names


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a compiled kernel, by the cuobjdump that triton carries."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}


@cache
def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def main() -> None:
    """One JSON line per case and architecture, then one with the kernels that exist and those compiled."""
    os.environ.pop("TRITON_INTERPRET", None)
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    compiled: set[str] = set()
    for case in CASES:
        if word in case.id:
            for architecture in ARCHITECTURES:
                built, functions = build(case, architecture)
                compiled |= functions
                print(json.dumps(vars(built)), flush=True)
    print(json.dumps({"exist": sorted(kernels_in_package()), "compiled": sorted(compiled)}))


if __name__ == "__main__":
    main()
