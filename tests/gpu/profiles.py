"""Profiles: a cohort's decode and a prompt's forward, kept beside the results, and what each says."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable

import cohort_trace
import torch
from lab import Lab
from results import Figures

from xgr_kernels.beam_select import cuda_kernels

FILE = "profiles.zip"  # one file for all: of some machines few come back


def traced(lab: Lab, name: str, work: Callable[[], object]) -> cohort_trace.Events:
    """Events of `work`, which are kept under that name. What is queued is done first, and at the end."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if lab.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    lab.settle()
    with torch.profiler.profile(activities=activities) as profile:
        work()
        lab.settle()
    path = lab.scratch / f"{name}.json"
    profile.export_chrome_trace(str(path))
    with zipfile.ZipFile(lab.out / FILE, "a", zipfile.ZIP_DEFLATED) as kept:
        kept.write(path, path.name)
    events: cohort_trace.Events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    path.unlink()
    return events


def read_cohorts(figures: Figures, events: cohort_trace.Events, cohorts: int, floor: float) -> None:
    """Who waited, and what took the device's time; a CPU's profile says nothing of either."""
    hidden, copies = cohort_trace.hidden_copies(events)
    figures.note("copies", us=1e6 * copies, **{"us beside a kernel": 1e6 * hidden})
    seconds = _device(figures, "cohort", events, cohorts, floor)
    if total := sum(seconds.values()):
        ours = sum(seconds.get(purpose, 0.0) for purpose in ("tail", "select", "read-back"))
        figures.goal("share of tail, merge, selection and read-back", ours / total, 0.15)
    found = cohort_trace.waits(events)
    assert not found, f"something waits inside a cohort, whose levels are queued at once: {found[:5]}"


def read_forward(figures: Figures, events: cohort_trace.Events, floor: float) -> None:
    """What took the device's time in one forward over prompts."""
    _device(figures, "forward", events, 1, floor)


def _device(
    figures: Figures, what: str, events: cohort_trace.Events, count: int, floor: float
) -> dict[str, float]:
    """Seconds of the device by purpose; launches, shares, the longest and the time of each of `count`."""
    seconds = cohort_trace.shares(events, selection_kernels())
    total = sum(seconds.values())
    shares = {f"{purpose} %": 100 * part / total for purpose, part in sorted(seconds.items())}
    figures.note(f"launches of a {what}", count=cohort_trace.launches(events) / count, **shares)
    longest = {name.replace("|", "/"): seconds for name, seconds in cohort_trace.longest(events)}
    figures.note("longest, in seconds", **longest)
    if total:
        each = cohort_trace.span(events) / count
        figures.time(f"device time of a {what}", each, floor, busy=total / count)
    return seconds


def selection_kernels() -> list[str]:
    """Names of the compiled kernels of selection, as a profile has them."""
    return [name for name, value in vars(cuda_kernels).items() if hasattr(value, "run") and name[0] != "_"]
