"""What batch work beside online requests costs them, and how much it takes of what they leave.

python tests/scaling/batch_beside.py [--busy 0.25,0.5,0.75] [--device H200] [--slower 50] [--plot FILE]

Devices are simulated (see simulated.py); router, wire and schedulers are real. What batch work alone gets in
a second, with many requests at a time, is what there is. Then online requests come at random times, so many
that they need `--busy` of it, first alone and then with batch work beside them. Prints their p50 and p99
without and with it, and the answers of batch work as a share of what online requests leave; one JSON line
last. Times and rates are the device's, not this machine's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from played_devices import ITEMS, Files
from serve import Serve

ONLINE = 256  # requests at a time, at most


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--busy", type=shares, default=[0.25, 0.5, 0.75], help="by online requests alone")
    flags.add_argument("--device", default="H200")
    flags.add_argument("--slower", type=float, default=50.0, help="a second of the device takes so many here")
    flags.add_argument("--items", type=int, default=64, help="of a history, three tokens each")
    flags.add_argument("--width", type=int, default=128)
    flags.add_argument("--in-flight", type=int, default=32, help="requests of batch work at a time")
    flags.add_argument("--seconds", type=float, default=60.0, help="of this machine, for each part")
    flags.add_argument("--plot", type=Path)
    args = flags.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="xgr-sim-") as folder:
        found = measure(Files(Path(folder), args.device, args.slower), args)
    print(f"batch work alone: {found['alone_per_second']:.1f} answers/s")
    print(
        "| online needs | p50, p99 alone | p50, p99 beside batch work | p99, ratio | batch took of the rest |"
    )
    print("|---|---|---|---|---|")
    for point in found["points"]:
        alone, beside = point["alone"], point["beside"]
        print(
            f"| {point['busy']:.0%} | {alone['p50_ms']:.1f}, {alone['p99_ms']:.1f} ms "
            f"| {beside['p50_ms']:.1f}, {beside['p99_ms']:.1f} ms | {beside['p99_ms'] / alone['p99_ms']:.2f} "
            f"| {point['of_rest']:.0%} |"
        )
    if args.plot:
        draw(found["points"], args, args.plot)
    print(json.dumps({"benchmark": "batch_beside", "device": args.device, "slower": args.slower, **found}))
    return 0


def shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def measure(files: Files, args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "model-path": files.model,
        "catalog": files.catalog,
        "model-backend": "simulated",
        "port": 0,
        "layout": "split",
        "threads": 1,
        "kv-bytes": 64 << 20,
        "max-rows": 64 * args.width,
        "max-beam-width": args.width,
        "hedge-after": 0,
        "max-live": 4096,
        "silence": 60,
        "lease": 90,
    }
    deployment = Serve([f"--{name}={value}" for name, value in settings.items()], os.environ)
    try:
        asked = Asked(deployment.url(), args)
        asked.part(args.seconds / 3, 0.0, True)  # workers learn what their launches cost
        there_is = asked.part(args.seconds, 0.0, True).batch / args.seconds
        points = []
        for busy in args.busy:
            alone = asked.part(args.seconds, busy * there_is, False)
            beside = asked.part(args.seconds, busy * there_is, True)
            left = there_is - len(beside.online) / args.seconds
            points.append(
                {
                    "busy": busy,
                    "alone": times(alone.online, args.slower),
                    "beside": times(beside.online, args.slower),
                    "of_rest": beside.batch / args.seconds / left,
                }
            )
    finally:
        deployment.close()
    return {"alone_per_second": args.slower * there_is, "points": points}


def times(seconds: Sequence[float], slower: float) -> dict[str, float]:
    at = {f"p{share}_ms": 1e3 * float(np.percentile(seconds, share)) / slower for share in (50, 99)}
    return {"answers": len(seconds), **at}


@dataclass
class Part:
    """What was answered in one stretch of time."""

    online: list[float] = field(default_factory=list)  # seconds of each, from when it was to be sent
    batch: int = 0
    failures: list[BaseException] = field(default_factory=list)


class Asked:
    """A deployment, online requests at random times, and batch work that always has a next request."""

    def __init__(self, url: str, args: argparse.Namespace) -> None:
        self.address = urlsplit(url).netloc
        self.args = args
        self.threads = threading.local()

    def part(self, seconds: float, rate: float, batch: bool) -> Part:
        """Raises what a caller does."""
        part, draw = Part(), random.Random(f"{rate}")
        start = time.monotonic() + 0.1
        until = start + seconds

        def online(at: float, seed: float) -> None:
            self.ask(random.Random(seed), "online")
            part.online.append(time.monotonic() - at)

        def offline(number: int) -> None:
            seeds = random.Random(number)
            while time.monotonic() < until:
                self.ask(seeds, "batch")
                part.batch += time.monotonic() < until  # as its work began before the start of it

        with ThreadPoolExecutor(self.args.in_flight + ONLINE) as pool:
            calls = [pool.submit(offline, number) for number in range(self.args.in_flight if batch else 0)]
            at = start
            while rate and (at := at + draw.expovariate(rate)) < until:
                time.sleep(max(0.0, at - time.monotonic()))
                calls.append(pool.submit(online, at, draw.random()))
            for call in calls:
                call.result()
        return part

    def ask(self, draw: random.Random, kind: str) -> None:
        body = {
            "history": [f"i{draw.randrange(ITEMS)}" for _ in range(self.args.items)],
            "sampling_params": {"beam_width": self.args.width},
            "timeout_ms": 600_000,
            "priority_class": kind,
        }
        if (connection := getattr(self.threads, "connection", None)) is None:
            connection = self.threads.connection = http.client.HTTPConnection(self.address)
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {said[:300]!r}")


def draw(points: Sequence[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """p99 of online requests without and with batch work, and what that took of the rest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    busy = [100 * point["busy"] for point in points]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 6), layout="constrained")
    for name, label in (("alone", "alone"), ("beside", "beside batch work")):
        above.plot(busy, [point[name]["p99_ms"] for point in points], marker="o", label=label)
    above.set(
        ylabel="p99 of online requests, ms",
        ylim=(0, None),
        title=f"simulated {args.device}, Qwen3-1.7B, width {args.width}, {3 * args.items} tokens",
    )
    above.legend()
    below.plot(busy, [100 * point["of_rest"] for point in points], marker="o")
    below.axhline(80, color="grey", linestyle="--")
    below.set(xlabel="online requests need, %", ylabel="batch work takes of the rest, %", ylim=(0, None))
    for panel in (above, below):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
