"""Random faults against two prefill and two decode workers under load, for minutes.

python tests/faults/chaos.py --minutes 5 --seed 1

Kills, stops, slows down and cuts off workers and sends them bad frames, while callers ask, leave and abort.
One worker of each kind is always left alone, so every request can be answered. Prints one JSON line last.
Exit code 1 if a request was lost, hung or answered wrongly, or if something is still held at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time

import support_path  # noqa: F401
from census import leaks
from crowd import Crowd
from patient import Patient
from upsets import Upsets


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="default: a new one")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the deployment ends too
    patient = Patient()
    try:
        result = chaos(patient, args.minutes * 60, args.seed)
    finally:
        patient.close()
    print(json.dumps(result), flush=True)
    return 1 if result["wrong"] or result["lost"] or result["leaks"] else 0


def chaos(patient: Patient, seconds: float, seed: int) -> dict[str, object]:
    fleet = patient.fleet()
    upsets = Upsets(fleet, random.Random(seed))
    with Crowd(fleet.url, patient.questions, seed, callers=8, leaving=0.2) as crowd:
        upsets.run(seconds)
    tally = crowd.stop()
    over = time.monotonic()
    fleet.whole()
    whole = time.monotonic() - over
    return {
        "seed": seed,
        "seconds": seconds,
        "acts": dict(upsets.done),
        "requests": len(tally.records),
        **{outcome.value: count for outcome, count in sorted(tally.complete_counts.items())},
        "refusals": dict(tally.refusals),
        "bad": tally.bad[:10],
        "leaks": leaks(fleet, patient.at_rest),
        "whole_after_s": round(whole, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
