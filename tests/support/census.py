"""What a deployment holds at rest: the same after a fault as before, or something leaks."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from fleet import Fleet
from freed import EVERY

from xgr_runtime.client import XgrClient, read
from xgr_runtime.wire.answers import ServerInfo, WorkerStatus

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Census:
    """Per process: open descriptors, and the shared segments among them. And what lies around."""

    descriptors: dict[str, int]
    segments: dict[str, int]
    processes: int
    run_folders: int
    shared_files: frozenset[Path]


def with_room(census: Census, descriptors: int, segments: int) -> Census:
    """The same, where each process may have so many more, as not all pairs have worked together yet."""
    return replace(
        census,
        descriptors={name: count + descriptors for name, count in census.descriptors.items()},
        segments={name: count + segments for name, count in census.segments.items()},
    )


def take(fleet: Fleet) -> Census:
    """Of the launcher, the router and the workers, as they are now."""
    with fleet.client() as client:
        client.ready()  # it has a connection, and so has had whoever counted before
        return _take(fleet)


def _take(fleet: Fleet) -> Census:
    processes = {"launcher": psutil.Process(fleet.launcher.pid)}
    for name in ("router", *fleet.workers):
        if found := fleet.process(name):
            processes[name] = found
    return Census(
        {name: process.num_fds() for name, process in processes.items()},
        {name: segments(process.pid) for name, process in processes.items()},
        len(fleet.family()),
        len(list(fleet.folder.glob("xgr-*"))),
        frozenset(SHARED_MEMORY.iterdir()),
    )


def segments(pid: int) -> int:
    """Shared segments that the process has open, its own and others'."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found += str(descriptor.readlink()).startswith("/memfd:")
    return found


def leaks(fleet: Fleet, before: Census, seconds: float = 15.0) -> list[str]:
    """What is still held `seconds` after the last request, empty as soon as it is nothing."""
    end = time.monotonic() + seconds
    while True:
        with fleet.client() as client:
            found = [*held(client), *grown(before, _take(fleet))]
        if not found or time.monotonic() > end:
            return found
        time.sleep(EVERY)


def held(client: XgrClient) -> list[str]:
    """Requests, pages, rows, credits and leases that nobody can want any more."""
    live = live_requests(client)
    found = [f"router: {live} requests"] if live else []
    return found + [text for worker in client.workers(fresh=True) if worker.alive for text in held_by(worker)]


def live_requests(client: XgrClient) -> int:
    """That the router holds."""
    return read(client.http.get("/server_info"), ServerInfo).live_requests


def held_by(worker: WorkerStatus) -> list[str]:
    load = worker.load
    assert load is not None
    quantities = {
        "attempts": worker.in_flight,
        "requests": load.requests,
        "pages": load.pages_used,
        "rows": load.rows_used,
        "credits": load.credits_out,
        "leases": load.leases,
    }
    return [f"{worker.worker}: {count} {what}" for what, count in quantities.items() if count]


def grown(before: Census, now: Census) -> list[str]:
    found = [
        f"{name}: {count} descriptors, {before.descriptors.get(name, 0)} before"
        for name, count in now.descriptors.items()
        if count > before.descriptors.get(name, 0)
    ]
    found += [
        f"{name}: {count} segments, {before.segments.get(name, 0)} before"
        for name, count in now.segments.items()
        if count > before.segments.get(name, 0)
    ]
    if now.processes > before.processes:
        found.append(f"{now.processes} processes, {before.processes} before")
    if now.run_folders > before.run_folders:
        found.append(f"{now.run_folders} run folders, {before.run_folders} before")
    return found + [f"{path} is left" for path in sorted(now.shared_files - before.shared_files)]
