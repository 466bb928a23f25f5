"""Carries IPv4 packets between TUN devices as a slow, lossy or broken link would: a process of its own.

`python -m carrier SEED DESCRIPTOR=ADDRESS...` reads `Conditions` as lines of JSON and ends when they end.
What happens to a packet is drawn from the seed, so the link is as bad on every machine; when, is not.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import sys
import time
from contextlib import suppress

import msgspec

_PACKET = 1 << 16  # bytes, the longest
_SHARE = 64  # packets of one device in a turn
_BUFFER = 0.1  # seconds that a packet may wait for the rate; what comes later is dropped, as routers do
LATE = 0.003  # seconds by which a packet is late that others overtake


class Conditions(msgspec.Struct, frozen=True):
    """Of every device: what its packets meet on the way to another one."""

    delay: float = 0.0  # seconds, one way
    loss: float = 0.0  # share of packets
    reordering: float = 0.0  # share of packets that others overtake
    rate: float = 0.0  # bits per second into each device; 0: no limit
    gone: bool = False  # nothing arrives


class Carrier:
    """The devices, and the packets that are on their way."""

    def __init__(self, seed: int, devices: dict[bytes, int]) -> None:
        """`devices` are their descriptors by the address behind them, 4 bytes."""
        self.devices = devices
        self.conditions = Conditions()
        self.draw = random.Random(seed)
        self.flying: list[tuple[float, int, int, bytes]] = []  # when due, in which order, to whom, what
        self.free = dict.fromkeys(devices.values(), 0.0)  # when a packet may next be put on the way there
        self.order = 0

    def run(self, orders: int) -> None:
        """Until `orders`, a descriptor of conditions, ends."""
        poller = select.poll()
        for source in (orders, *self.devices.values()):
            poller.register(source, select.POLLIN)
        reader = os.fdopen(orders, "rb")
        while True:
            wait = None if not self.flying else max(0.0, self.flying[0][0] - time.monotonic()) * 1000
            ready = [source for source, _ in poller.poll(wait)]
            if orders in ready:
                if not (line := reader.readline()):
                    return
                self.conditions = msgspec.json.decode(line, type=Conditions)
            for source in ready:
                if source != orders:
                    self.take(source)
            self.deliver(time.monotonic())

    def take(self, source: int) -> None:
        """Put what a device sends on its way."""
        now = time.monotonic()
        for _ in range(_SHARE):
            try:
                packet = os.read(source, _PACKET)
            except BlockingIOError:
                return
            target = self.devices.get(packet[16:20])
            if target is not None and packet[0] >> 4 == 4:
                self.send(packet, target, now)

    def send(self, packet: bytes, target: int, now: float) -> None:
        """What becomes of one packet."""
        found = self.conditions
        if found.gone or (found.loss and self.draw.random() < found.loss):
            return
        due = now
        if found.rate:
            begun = max(now, self.free[target])
            if begun - now > _BUFFER:
                return
            due = self.free[target] = begun + len(packet) * 8 / found.rate
        due += found.delay
        if found.reordering and self.draw.random() < found.reordering:
            due += LATE
        self.order += 1
        heapq.heappush(self.flying, (due, self.order, target, packet))

    def deliver(self, now: float) -> None:
        """What is due arrives, unless nothing does."""
        while self.flying and self.flying[0][0] <= now:
            _, _, target, packet = heapq.heappop(self.flying)
            if not self.conditions.gone:
                with suppress(BlockingIOError):
                    os.write(target, packet)


def main() -> None:
    named = [given.partition("=") for given in sys.argv[2:]]
    devices = {socket.inet_aton(address): int(descriptor) for descriptor, _, address in named}
    Carrier(int(sys.argv[1]), devices).run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
