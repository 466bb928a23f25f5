"""Whatever a worker asks of a GPU names which one: what names none goes to the first GPU of the machine.

Read from the source, so that it holds where there is no GPU, and for code that no test runs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("xgr_runtime", "prefill_worker", "decode_worker", "kernels/xgr_kernels")

# Of torch.cuda: without an argument they mean the thread's current device.
TAKE_A_DEVICE = {
    *("Stream", "current_stream", "default_stream", "synchronize", "memory_reserved", "memory_allocated"),
    *("max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_stats", "get_device_name"),
    *("get_device_properties", "get_device_capability", "reset_peak_memory_stats"),
}
# Asks after an error whether the current device, whichever it is, still answers.
ALLOWED = {("xgr_runtime/model/device/device.py", "torch.cuda.synchronize() names no device")}


def unnamed(source: str) -> Iterator[str]:
    """What calls of `source` leave open, in words."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        bare = not node.args and not node.keywords
        if name.startswith("torch.cuda.") and (last == "current_device" or (bare and last in TAKE_A_DEVICE)):
            yield f"{name}() names no device"
        if last in ("cuda", "CudaDevice") and bare:
            yield f"{name}() names no device"
        given = [*(node.args if last in ("device", "to") else []), *_device_keywords(node)]
        if any(isinstance(x, ast.Constant) and x.value == "cuda" for x in given) and not (
            last == "device" and len(node.args) == 2
        ):
            yield f"{name} is given 'cuda' without an index"


def _device_keywords(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg == "device"]


@pytest.mark.parametrize("folder", OURS)
def test_every_call_names_its_device(folder: str) -> None:
    found = {
        (str(path.relative_to(ROOT)), what)
        for path in (ROOT / folder).rglob("*.py")
        for what in unnamed(path.read_text())
    }
    assert not found - ALLOWED


@pytest.mark.parametrize(
    "planted",
    [
        "torch.cuda.Stream()",
        "torch.cuda.mem_get_info()",
        "torch.zeros(3, device=torch.device(torch.cuda.current_device()))",
        "x.cuda()",
        "CudaDevice()",
        "torch.zeros(3, device='cuda')",
        "x.to('cuda', non_blocking=True)",
        "torch.device('cuda')",
    ],
)
def test_a_call_that_names_none_is_found(planted: str) -> None:
    assert len(list(unnamed(planted))) == 1


@pytest.mark.parametrize(
    "sound",
    [
        "torch.cuda.Stream(device)",
        "torch.cuda.mem_get_info(device)",
        "torch.device('cuda', index)",
        "torch.zeros(3, device=device)",
        "x.to(device)",
        "x.to('cpu')",
        "torch.cuda.is_available()",
    ],
)
def test_a_call_that_names_one_is_not(sound: str) -> None:
    assert not list(unnamed(sound))
