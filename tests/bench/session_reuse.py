"""How much more session traffic a deployment bears that keeps the KV of its users' histories.

python tests/bench/session_reuse.py --model-path DIR --catalog FILE

Starts the same deployment twice, one after the other: with caches, and with `--cache-bytes 0`. Sends each the
same kind of sessions (users who return with one new item; see `xgr bench --traffic sessions`) and searches
the highest rate at which p99 stays within the SLO. Prints both, their ratio, and one JSON line last.
"""

from __future__ import annotations

import sys

from under_load import CONSOLE, finish, measure, parser

from xgr_runtime.catalog import load_catalog
from xgr_runtime.cli.bench.settings import SearchSettings, TrafficSettings, Widths

WAYS = {"with caches": -1, "without": 0}


def main() -> int:
    flags = parser(__doc__, width=50, prompt_tokens=2000)
    flags.add_argument("--returning", type=float, default=0.9, help="share of requests by returning users")
    flags.add_argument("--new-items", type=int, default=1, help="that they have taken since")
    flags.add_argument("--window-step", type=int, help="of a window that slides; absent: users cut histories")
    flags.add_argument("--known-users", type=int, default=32, help="users before the first point")
    flags.add_argument("--users", type=int, default=1000, help="how many may return")
    args = flags.parse_args()
    catalog = load_catalog(args.catalog, args.model_path)
    traffic = TrafficSettings(
        kind="sessions",
        prompt_tokens=args.prompt_tokens,
        users=args.users,
        known=args.known_users,
        returning=args.returning,
        new_items=args.new_items,
        window_step=args.window_step,
        widths=Widths((args.beam_width,), (1.0,)),
        seed=args.seed,
    )
    search = SearchSettings(args.start_rate, 5 / args.duration, args.max_runs)
    best, points = {}, {}
    for way, cache_bytes in WAYS.items():
        CONSOLE.print(f"[bold]{way}[/]")
        best[way], points[way] = measure(
            args, catalog, traffic, lambda run: run.highest_rate(search), cache_bytes=cache_bytes
        )
    rate, plain = best["with caches"], best["without"]
    ratio = rate / plain if rate and plain else None
    CONSOLE.print(f"max rate with caches {rate}, without {plain}, ratio {ratio and round(ratio, 2)}")
    return finish(args, points, {"max_rate": best, "ratio": ratio})


if __name__ == "__main__":
    sys.exit(main())
