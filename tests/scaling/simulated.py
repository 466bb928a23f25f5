"""How far work grows with workers, where router, wire and schedulers are real and the devices are played.

python tests/scaling/simulated.py [--decode 1,2,4] [--device H200] [--slower 100] [--plot FILE]

Serves a made catalog with so many decode workers, one prefill worker per --decode-per-prefill of them, and
asks as many requests at a time as keep them busy. Devices and their times are those of a roofline, slowed
down so that one machine can play many: rates and times below are the device's, not this machine's. Prints
requests per second, the share of so many times one worker's, and the CPU time of the router for a request,
which is real; one JSON line last.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from played_devices import ITEMS, Files
from serve import Serve


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--decode", type=numbers, default=[1, 2, 4, 8], help="decode workers, a point each")
    flags.add_argument("--decode-per-prefill", type=float, default=1.0)
    flags.add_argument("--device", default="H200")
    flags.add_argument(
        "--slower", type=float, default=100.0, help="a second of the device takes so many here"
    )
    flags.add_argument("--items", type=int, default=64, help="of a history, three tokens each")
    flags.add_argument("--width", type=int, default=128)
    flags.add_argument("--in-flight", type=int, default=8, help="requests at a time for each decode worker")
    flags.add_argument("--seconds", type=float, default=20.0, help="of this machine, for each point")
    flags.add_argument("--plot", type=Path)
    args = flags.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="xgr-sim-") as folder:
        served = Files(Path(folder), args.device, args.slower)
        points = [measure(served, workers, args) for workers in args.decode]
    single = points[0]["per_second"] / points[0]["decode"]
    for point in points:
        point["efficiency"] = point["per_second"] / (single * point["decode"])
        print(
            f"{point['decode']:3d} decode, {point['prefill']:3d} prefill: {point['per_second']:8.1f}/s, "
            f"{point['efficiency']:4.0%} of as many times one's, p50 {point['p50_ms']:.1f} ms, "
            f"router {point['router_ms']:.2f} ms of CPU a request"
        )
    if args.plot:
        draw(points, args, args.plot)
    print(json.dumps({"device": args.device, "slower": args.slower, "width": args.width, "points": points}))
    return 0


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure(files: Files, decode: int, args: argparse.Namespace) -> dict[str, Any]:
    """A deployment with so many decode workers, busy for a while."""
    prefill = max(1, round(decode / args.decode_per_prefill))
    settings = {
        "model-path": files.model,
        "catalog": files.catalog,
        "model-backend": "simulated",
        "port": 0,
        "layout": "split",
        "sharing": "none",  # as on devices of their own
        "prefill-workers": prefill,
        "decode-workers": decode,
        "threads": 1,
        "kv-bytes": 32 << 20,
        "max-beam-width": args.width,
        "hedge-after": 0,
        "max-live": 4096,
        "silence": 60,
        "lease": 90,
    }
    deployment = Serve([f"--{name}={value}" for name, value in settings.items()], os.environ)
    try:
        url = deployment.url()
        router = deployment.worker("router")
        load = Load(url, args, decode * args.in_flight)
        # First every worker learns what its launches cost.
        latencies, cpu = load.run(args.seconds / 2, args.seconds, lambda: sum(router.cpu_times()[:2]))
    finally:
        deployment.close()
    return {
        "decode": decode,
        "prefill": prefill,
        "per_second": args.slower * len(latencies) / args.seconds,
        "p50_ms": 1e3 * float(np.median(latencies)) / args.slower,
        "router_ms": 1e3 * cpu / len(latencies),
    }


class Load:
    """So many callers, one request after the other each."""

    def __init__(self, url: str, args: argparse.Namespace, callers: int) -> None:
        self.address = urlsplit(url).netloc
        self.args = args
        self.callers = callers

    def run(self, warmup: float, seconds: float, spent: Callable[[], float]) -> tuple[list[float], float]:
        """What each answer took that came in those seconds after a warm-up, and how `spent` rose in them.

        Raises what a caller does.
        """
        begin = time.monotonic() + warmup
        answers: list[tuple[float, float]] = []  # when each came, and what it took
        failures: list[BaseException] = []

        def call(number: int) -> None:
            try:
                self.ask_on(random.Random(number), begin + seconds, answers.append)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(self.callers)]
        for thread in threads:
            thread.start()
        time.sleep(max(0.0, begin - time.monotonic()))
        before = spent()
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        after = spent()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return [took for came, took in answers if begin <= came < begin + seconds], after - before

    def ask_on(
        self, draw: random.Random, until: float, answered: Callable[[tuple[float, float]], None]
    ) -> None:
        connection = http.client.HTTPConnection(self.address)
        while (began := time.monotonic()) < until:
            history = [f"i{draw.randrange(ITEMS)}" for _ in range(self.args.items)]
            body = {
                "history": history,
                "sampling_params": {"beam_width": self.args.width},
                "timeout_ms": 600_000,
            }
            connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {said[:300]!r}")
            now = time.monotonic()
            answered((now, now - began))


def draw(points: Sequence[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Requests per second against workers, beside a straight line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    workers = [point["decode"] for point in points]
    straight = [points[0]["per_second"] / workers[0] * count for count in workers]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(workers, [point["per_second"] for point in points], marker="o", label="simulated")
    axes.plot(workers, straight, linestyle="--", color="grey", label="as many times one worker's")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="decode workers",
        ylabel="requests per second",
        title=f"simulated {args.device}, Qwen3-1.7B, width {args.width}, {3 * args.items} tokens",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
