"""What is left of the promise when ten times as many requests come as a deployment can bear.

python tests/bench/overload.py --model-path DIR --catalog FILE [--max-rate N]

Searches the highest rate at which p99 stays within the SLO (or takes --max-rate), then offers multiples of
it, each request with the SLO as its deadline. Good is an answer within it. Prints goodput at the highest
multiple against its peak, p99 of what was answered there against the deadline, and one JSON line last.
"""

from __future__ import annotations

import dataclasses
import sys

from under_load import CONSOLE, finish, load_of, measure, parser

from xgr_runtime.catalog import load_catalog
from xgr_runtime.cli.bench.run import Run
from xgr_runtime.cli.bench.settings import SearchSettings, TrafficSettings, Widths

MULTIPLES = (0.8, 1.0, 1.25, 1.5, 2.0, 4.0, 10.0)


def main() -> int:
    flags = parser(__doc__, width=128, prompt_tokens=513)
    flags.add_argument("--max-rate", type=float, help="requests per second; absent: searched first")
    flags.add_argument(
        "--multiples", type=lambda text: [float(m) for m in text.split(",")], default=MULTIPLES
    )
    args = flags.parse_args()
    catalog = load_catalog(args.catalog, args.model_path)
    traffic = TrafficSettings(
        prompt_tokens=args.prompt_tokens, widths=Widths((args.beam_width,), (1.0,)), seed=args.seed
    )
    search = SearchSettings(args.start_rate, 5 / args.duration, args.max_runs)
    points, best = {}, args.max_rate
    if best is None:
        best, points["search"] = measure(args, catalog, traffic, lambda run: run.highest_rate(search))
    if best is None:
        CONSOLE.print("no rate kept the promise: there is nothing to take multiples of")
        return finish(args, points, {"max_rate": None})

    async def overload(run: Run) -> None:
        for multiple in args.multiples:
            await run.open(multiple * best)

    deadline = dataclasses.replace(traffic, timeout_ms=round(args.slo_ms))
    _, points["overload"] = measure(args, catalog, deadline, overload)
    peak = max(point.goodput for point in points["overload"])
    last = points["overload"][-1]
    figures = {
        "max_rate": best,
        "peak_goodput": peak,
        "goodput_share": last.goodput / peak if peak else None,
        "p99_ms": last.p99_ms,
        "deadline_ms": args.slo_ms,
    }
    CONSOLE.print(
        f"at {last.offered / best:g} times the max rate of {best:.2f}/s: goodput {last.goodput:.2f}/s, "
        f"{last.goodput / (peak or 1):.0%} of its peak of {peak:.2f}/s; "
        f"p99 of the answered {last.p99_ms:.0f} ms, "
        f"deadline {1e3 * load_of(args).slo:.0f} ms"
    )
    return finish(args, points, figures)


if __name__ == "__main__":
    sys.exit(main())
