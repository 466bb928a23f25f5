"""Ordinary load with callers who leave, for long: memory, descriptors and segments stay flat.

python tests/faults/soak.py --minutes 30

Samples every process once a second. Memory is flat if its median over the last quarter is at most `--slack`
above that of the second (the first is for caches and buffers to fill). Prints one JSON line last; exit code 1
if something grows, or a request was lost or answered wrongly.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import psutil
import support_path  # noqa: F401
from census import leaks, segments
from crowd import Crowd
from fleet import Fleet
from patient import Patient

MIB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--leaving", type=float, default=0.2, help="share of requests that callers give up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slack", type=float, default=0.05, help="share by which memory may grow")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the deployment ends too
    patient = Patient()
    try:
        result = soak(patient, args)
    finally:
        patient.close()
    print(json.dumps(result), flush=True)
    return 1 if result["wrong"] or result["lost"] or result["leaks"] or result["growing"] else 0


def soak(patient: Patient, args: argparse.Namespace) -> dict[str, object]:
    fleet = patient.fleet()
    with Crowd(fleet.url, patient.questions, args.seed, callers=8, leaving=args.leaving) as crowd:
        memory, most = watch(fleet, args.minutes * 60)
    tally = crowd.stop()
    return {
        "seed": args.seed,
        "seconds": args.minutes * 60,
        "requests": len(tally.records),
        **{outcome.value: count for outcome, count in sorted(tally.complete_counts.items())},
        "refusals": dict(tally.refusals),
        "memory_mib": {name: [round(value / MIB, 1) for value in quarters(v)] for name, v in memory.items()},
        "most_descriptors": most["descriptors"],
        "most_segments": most["segments"],
        "growing": [name for name, values in memory.items() if grows(values, args.slack)],
        "leaks": leaks(fleet, patient.at_rest),
    }


def watch(fleet: Fleet, seconds: float) -> tuple[dict[str, list[int]], dict[str, dict[str, int]]]:
    """Resident bytes of every process, second by second, and the most descriptors and segments it had."""
    processes = {name: fleet.process(name) for name in ("router", *fleet.workers)}
    memory: dict[str, list[int]] = defaultdict(list)
    most: dict[str, dict[str, int]] = {"descriptors": {}, "segments": {}}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, process in processes.items():
            assert isinstance(process, psutil.Process), f"{name} does not run"
            memory[name].append(process.memory_info().rss)
            for kind, count in (("descriptors", process.num_fds()), ("segments", segments(process.pid))):
                most[kind][name] = max(count, most[kind].get(name, 0))
        time.sleep(1.0)
    return memory, most


def quarters(values: Sequence[int]) -> list[float]:
    """The median of each quarter of the samples."""
    size = max(1, len(values) // 4)
    return [statistics.median(values[i * size : (i + 1) * size] or values[-1:]) for i in range(4)]


def grows(values: Sequence[int], slack: float) -> bool:
    _, second, _, last = quarters(values)
    return last > second * (1 + slack)


if __name__ == "__main__":
    sys.exit(main())
