"""One mix of devices under one traffic: whether it holds the promise, and where requests spent their time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from xgr_runtime.planning.clock import OneAtATime, SharedCores, SimulatedClock
from xgr_runtime.planning.devices import DeviceKind, DeviceRole, Site
from xgr_runtime.planning.routing import PlayedRouter, WorkerSeat
from xgr_runtime.planning.traffic import PlannedRequest, PlannedTraffic
from xgr_runtime.planning.workers import STAGES, Marks, PlayedDecode, PlayedPrefill, SimulatedDevice

WARM_UP = 0.1  # of the requests: queues and caches fill
SLOWEST = 0.05  # of the answers: what they waited for is what breaks


class MixPart(NamedTuple):
    """So many devices of a kind in a role."""

    kind: DeviceKind
    role: DeviceRole
    devices: int


Mix = tuple[MixPart, ...]


@dataclass
class Played:
    """What came of it. Times in seconds; requests of the warm-up count nowhere."""

    asked: int = 0
    latencies: list[float] = field(default_factory=list)  # of answers, ascending
    slowest: dict[str, float] = field(default_factory=dict)  # by stage, means over the slowest answers
    busy: dict[tuple[str, str], float] = field(default_factory=dict)  # shares, by device and role
    router: float = 0.0  # share of its core
    stopped: bool = False  # too many were late already

    @property
    def answered(self) -> float:
        """Share of the requests."""
        return len(self.latencies) / self.asked if self.asked else 0.0

    def percentile(self, share: float) -> float:
        """Seconds that so many of the answers did not exceed (nearest rank); nan of nothing."""
        if not self.latencies:
            return math.nan
        return self.latencies[max(0, math.ceil(share * len(self.latencies)) - 1)]

    def keeps(self, traffic: PlannedTraffic) -> bool:
        """p99 within the SLO, and all answered but the share that may be missing."""
        if self.stopped or self.answered < traffic.answered or not self.latencies:
            return False
        return 1e3 * self.percentile(0.99) <= traffic.slo_ms


def play(
    mix: Mix,
    around: Site,
    traffic: PlannedTraffic,
    requests: Sequence[PlannedRequest],
    rate: float,
    to_the_end: bool = False,
) -> Played:
    """The requests at so many per second. It ends early where nothing can save it, unless `to_the_end`."""
    return _Playing(mix, around, traffic, requests, rate, to_the_end).run()


class _Playing:
    """A run of it."""

    def __init__(
        self,
        mix: Mix,
        around: Site,
        traffic: PlannedTraffic,
        requests: Sequence[PlannedRequest],
        rate: float,
        to_the_end: bool,
    ) -> None:
        self.traffic, self.requests, self.rate, self.around = traffic, requests, rate, around
        self.clock = SimulatedClock()
        self.cores = SharedCores(self.clock, around.cores)
        self.client = OneAtATime(self.cores)
        self.router = PlayedRouter(
            self.clock, self.cores, traffic, around.router, around.max_live, self.answered
        )
        self.devices: list[tuple[MixPart, SimulatedDevice]] = []
        self.first = int(WARM_UP * len(requests))  # that counts
        self.found: list[tuple[float, Marks]] = []
        self.open, self.bad = len(requests), 0
        counted = len(requests) - self.first
        most = counted if to_the_end else (2 - traffic.answered - 0.99) * counted + 1
        self.most_bad = most
        self.seat(mix)

    def seat(self, mix: Mix) -> None:
        """The workers on their devices; prefill workers have the first numbers."""
        memory = {}
        for part in mix:
            for index in range(part.devices):
                device = SimulatedDevice(self.clock, self.cores)
                self.devices.append((part, device))
                if part.role != "decode":
                    number = len(self.router.prefill) + 1
                    name = f"prefill-{part.kind.name}-{index}"
                    turns = name if part.role == "pair" else ""
                    memory[len(self.devices)] = number
                    played = PlayedPrefill(part.kind, device, self.clock)
                    self.router.prefill.append((WorkerSeat(name, number, turns, number), played))
        place = 0
        for at, (part, device) in enumerate(self.devices, 1):
            if part.role == "prefill":
                continue
            place += 1
            number = len(self.router.prefill) + place
            seat = WorkerSeat(f"decode-{part.kind.name}-{place}", number)
            beside = None
            if part.role == "pair":
                its, beside = self.router.prefill[memory[at] - 1]
                seat.turns, seat.memory = its.turns, its.number
            decode = PlayedDecode(part.kind, device, self.clock, self.around.link, beside)
            self.router.decode.append((seat, decode))

    def run(self) -> Played:
        """To its end."""
        for number, request in enumerate(self.requests):
            self.clock.at(request.at / self.rate, lambda n=number, r=request: self.router.take(n, r))  # type: ignore[misc]
        self.clock.run(lambda: not self.open or self.bad > self.most_bad)
        return self.summary()

    def answered(self, number: int, marks: Marks | None) -> None:
        """A request is over."""
        self.open -= 1
        self.client.do(self.around.client, lambda: None)
        if number < self.first:
            return
        if marks is None:
            self.bad += 1
            return
        latency = self.clock.now - marks.arrived + self.around.overhead
        self.bad += 1e3 * latency > self.traffic.slo_ms
        self.found.append((latency, marks))

    def summary(self) -> Played:
        found = sorted(self.found, key=lambda each: each[0])
        stopped = bool(self.open)
        played = Played(len(self.requests) - self.first, [latency for latency, _ in found], stopped=stopped)
        slow = found[-max(1, int(SLOWEST * len(found))) :]
        if slow:
            for stage, at in zip(STAGES, range(len(STAGES)), strict=True):
                played.slowest[stage] = sum(m[at + 1] - m[at] for _, m in slow) / len(slow)
        seconds = self.clock.now or 1.0
        for part, device in self.devices:
            key = (part.kind.name, part.role)
            played.busy[key] = played.busy.get(key, 0.0) + device.busy / seconds / part.devices
        played.router = self.router.process.busy / seconds
        return played
