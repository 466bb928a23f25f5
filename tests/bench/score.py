"""What scores of candidates cost: beside a search, and beside one request for each candidate.

Run `python tests/bench/score.py [--tokens 2000] [--candidates 1000] [--width 256]`, with XGR_TEST_DATA for
the real model and catalog. One deployment on this machine serves all three, in turns, each time with a prompt
that nobody sent before; of one request per candidate a few are timed and the rest is reckoned. Medians of
wall time; only their ratios mean something on a machine that others use. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from instruments import find_data
from items import read_items

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

LONG = 600_000  # milliseconds
SINGLES = 5  # requests for one candidate each, in each round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="of the prompt")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = find_data()
    names = sorted(read_items(data.catalog, data.model).sids)
    config = ServeConfig(
        model_path=str(data.model),
        catalog=str(data.catalog),
        port=0,
        timeout_ms=LONG,
        log_level="ERROR",
        kv_bytes=1 << 30,
    )
    draw = random.Random(1)
    chosen = draw.sample(names, min(options.candidates, len(names)))
    sids = read_items(data.catalog, data.model).sids
    tokens = [token for name in names for token in sids[name]]
    with Deployment(config) as deployment, XgrClient(deployment.url, timeout=LONG / 1000) as client:
        found = measure(client, tokens, chosen, draw, options)
    whole = len(chosen) * found["one candidate, prompt cached"]
    report = {
        **found,
        "candidates": len(chosen),
        "score_to_search": found["score"] / found["search"],
        "score_to_search_with_the_prompt_cached": found["score, prompt cached"]
        / found["search, prompt cached"],
        "one_request_each_to_score": (found["search"] + whole) / found["score"],
        "tokens": options.tokens,
        "width": options.width,
        "cores": os.cpu_count(),
    }
    print(json.dumps({"benchmark": "score", **report}))


def measure(
    client: XgrClient, tokens: list[int], chosen: list[str], draw: random.Random, options: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of each kind of request, which take turns."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, ask: Callable[[], object]) -> None:
        started = time.perf_counter()
        ask()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    for _ in range(options.rounds + 1):
        for name in ("search", "score"):
            prompt = draw.choices(tokens, k=options.tokens)
            search = {"input_ids": prompt, "beam_width": options.width, "n": 10}
            kind = {
                "search": lambda search=search: client.generate(**search),
                "score": lambda prompt=prompt: client.score(input_ids=prompt, items=chosen),
            }[name]
            timed(name, kind)
            timed(f"{name}, prompt cached", kind)
        for item in draw.sample(chosen, SINGLES):
            one = [item]
            timed(
                "one candidate, prompt cached",
                lambda one=one, prompt=prompt: client.score(input_ids=prompt, items=one),
            )
    warm = {name: some[len(some) // (options.rounds + 1) :] for name, some in seconds.items()}
    return {name: statistics.median(some) for name, some in warm.items()}


if __name__ == "__main__":
    main()
