"""Our wide beams against SGLang's own beam search, on the same checkpoint and prompts, in one run.

python tests/bench/sglang_beams.py --model-path DIR --catalog FILE [--widths 64,128,256] [--prompt-tokens 513]

Needs the environment of `deploy/setup --sglang`. Ours: router, one prefill and one decode worker on SGLang's
layers, constrained to the catalog, over HTTP. SGLang: its stock server with `sampling_params.beam_width`,
which knows no catalog, over HTTP, on all cores. One request at a time the two take turns; eight at a time
each has the machine for itself, twice. No prompt comes twice, so that no cache answers for the model. Prints
a table, and one JSON line last.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from traffic import make_prompts, timed

from xgr_runtime.catalog import load_catalog
from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launch import Deployment

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from stock_server import StockServer

Ask = Callable[[list[int], int], Any]
CALLERS = 8
NATIVE = {"max-running-requests": "4096", "max-total-tokens": "65536", "disable-radix-cache": ""}


def ask_sglang(http: httpx.Client, depth: int) -> Ask:
    """Unconstrained: `depth` tokens of whatever the model likes."""

    def ask(prompt: list[int], width: int) -> Any:
        params = {"beam_width": width, "n": width, "max_new_tokens": depth, "ignore_eos": True}
        answer = http.post("/generate", json={"input_ids": prompt, "sampling_params": params})
        answer.raise_for_status()
        found = answer.json()["meta_info"]["beam_results"]
        assert len(found) == width, f"{len(found)} beams, {width} were asked for"
        return found

    return ask


def ask_ours(client: XgrClient) -> Ask:
    def ask(prompt: list[int], width: int) -> Any:
        found = client.generate(input_ids=prompt, beam_width=width).meta_info.beam_results
        assert len(found) == width
        return found

    return ask


def one_by_one(asks: dict[str, Ask], prompts: list[list[int]], width: int, warm_up: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    for number, prompt in enumerate(prompts):
        for name, ask in asks.items():
            took, _ = timed(lambda a=ask, p=prompt: a(p, width))  # type: ignore[misc]
            if number >= warm_up:
                seconds[name].append(took)
    return {name: statistics.median(took) for name, took in seconds.items()}


def eight_at_a_time(asks: dict[str, Ask], prompts: list[list[int]], width: int) -> dict[str, float]:
    """Requests per second of each, the better of two rounds with half of the prompts each."""
    rates: dict[str, list[float]] = {name: [] for name in asks}
    half = len(prompts) // 2
    for part in (prompts[:half], prompts[half:]):
        for name, ask in asks.items():
            with ThreadPoolExecutor(CALLERS) as callers:
                took, _ = timed(lambda a=ask, c=callers, p=part: list(c.map(lambda x: a(x, width), p)))  # type: ignore[misc]
            rates[name].append(len(part) / took)
    return {name: max(rate) for name, rate in rates.items()}


def measure(args: argparse.Namespace, asks: dict[str, Ask], prompts: list[list[int]]) -> list[dict[str, Any]]:
    """One row per width."""
    rows = []
    alone, together = args.warm_up + args.requests, 2 * args.burst
    for width in map(int, args.widths.split(",")):
        fresh, prompts = prompts[: alone + together], prompts[alone + together :]
        latency = one_by_one(asks, fresh[:alone], width, args.warm_up)
        rate = eight_at_a_time(asks, fresh[alone:], width)
        rows.append(
            {
                "width": width,
                "ours_p50_ms": round(1e3 * latency["ours"], 1),
                "sglang_p50_ms": round(1e3 * latency["sglang"], 1),
                "latency_ratio": round(latency["sglang"] / latency["ours"], 2),
                "ours_per_s": round(rate["ours"], 2),
                "sglang_per_s": round(rate["sglang"], 2),
                "throughput_ratio": round(rate["ours"] / rate["sglang"], 2),
            }
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--widths", default="64,128,256")
    parser.add_argument("--prompt-tokens", type=int, default=513)
    parser.add_argument("--requests", type=int, default=20, help="timed one by one, per width")
    parser.add_argument("--burst", type=int, default=24, help="timed eight at a time, twice, per width")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="threads of each of our workers")
    args = parser.parse_args()

    catalog = load_catalog(args.catalog, args.model_path)
    widths = len(args.widths.split(","))
    prompts = make_prompts(
        catalog, widths * (args.warm_up + args.requests + 2 * args.burst), args.prompt_tokens
    )
    config = ServeConfig(
        model_path=str(args.model_path),
        model_backend="sglang",
        dtype="float32",
        catalog=str(args.catalog),
        port=0,
        threads=args.threads,
        log_level="WARNING",
    )
    cores = len(os.sched_getaffinity(0))
    with (
        StockServer(args.model_path, NATIVE, prefill=False, threads=cores) as server,
        httpx.Client(base_url=server.url, timeout=600.0) as http,
        Deployment(config) as deployment,
        XgrClient(deployment.url, timeout=600.0) as client,
    ):
        asks = {"ours": ask_ours(client), "sglang": ask_sglang(http, catalog.depth)}
        rows = measure(args, asks, prompts)
    print(json.dumps({"cores": cores, "prompt_tokens": args.prompt_tokens, "rows": rows}))


if __name__ == "__main__":
    main()
