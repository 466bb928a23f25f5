"""What a profile of a cohort says: who waited for the device, and where the device's time went. Plain Python.

Events are those of a Chrome trace as torch.profiler writes it: name, cat, ts and dur in microseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Events = Sequence[Mapping[str, Any]]

RUNTIME = ("cuda_runtime", "cuda_driver")
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree")
EVENT_WAITS = ("cudaEventSynchronize",)  # of copies long done: they may be asked for, but must not last
LONGEST_EVENT_WAIT = 100.0  # microseconds


def waits(events: Events) -> list[str]:
    """Host waits between the first and the last launch, and copies from memory that is not pinned."""
    calls = [e for e in events if e.get("cat") in RUNTIME]
    starts = [e["ts"] for e in calls if e["name"].startswith(LAUNCHES)]
    if not starts:
        return []
    inside = [e for e in calls if min(starts) < e["ts"] < max(starts)]
    found = [e["name"] for e in inside if e["name"] in WAITS]
    found += [
        f"{e['name']} of {e['dur']:.0f} us"
        for e in inside
        if e["name"] in EVENT_WAITS and e["dur"] > LONGEST_EVENT_WAIT
    ]
    copies = [e for e in events if e.get("cat") == "gpu_memcpy" and "ageable" in e["name"]]
    return found + [e["name"] for e in copies]


def launches(events: Events) -> int:
    """Calls that put work into the queue."""
    return sum(e.get("cat") in RUNTIME and e["name"].startswith(LAUNCHES) for e in events)


def shares(events: Events, selection: Sequence[str]) -> dict[str, float]:
    """Seconds of the device by what they were for. `selection` are the names of its kernels."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") in DEVICE:
            seconds[_purpose(event["name"], selection)] += event["dur"] / 1e6
    return dict(seconds)


def span(events: Events) -> float:
    """Seconds from the beginning of the device's first event to the end of its last one."""
    device = [e for e in events if e.get("cat") in DEVICE]
    if not device:
        return 0.0
    return float(max(e["ts"] + e["dur"] for e in device) - min(e["ts"] for e in device)) / 1e6


def hidden_copies(events: Events) -> tuple[float, float]:
    """Seconds of copies to and from the host during which a kernel ran too, and seconds of all of them."""
    kernels = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel")
    copies = [
        e for e in events if e.get("cat") == "gpu_memcpy" and ("HtoD" in e["name"] or "DtoH" in e["name"])
    ]
    hidden = 0.0
    for copy in copies:
        begin, end = copy["ts"], copy["ts"] + copy["dur"]
        for first, last in kernels:
            covered = min(end, last) - max(begin, first)
            if covered > 0:  # kernels may overlap each other: what one has covered counts once
                hidden += covered
                begin = last
    return hidden / 1e6, sum(e["dur"] for e in copies) / 1e6


def longest(events: Events, count: int = 12) -> list[tuple[str, float]]:
    """The kernels that took most of the device, by name, in seconds."""
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") in DEVICE:
            seconds[event["name"][:80]] += event["dur"] / 1e6
    return sorted(seconds.items(), key=lambda pair: -pair[1])[:count]


def _purpose(name: str, selection: Sequence[str]) -> str:
    if "DtoH" in name:
        return "read-back"
    if "HtoD" in name:
        return "upload"
    if name in selection:
        return "select"
    if name.startswith("tail_attention"):
        return "tail"
    attention = ("BatchPrefill", "PrefillWith", "MergeState", "flashinfer")
    return "attention" if any(part in name for part in attention) else "forward"
