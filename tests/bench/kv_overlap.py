"""How much of a prompt's KV moves while the prompt is still computed: read off a trace of real processes.

python tests/bench/kv_overlap.py --catalog FILE --model-path DIR [--prompt-tokens 2000] [--layers 16]

The model is that of kv_ways.py: random weights, and much KV for its size. Prints a line per request, and one
JSON line last, with medians over all requests but the first. `share` counts bytes that were taken in before
prefill's last forward ended, `seconds_share` the decode worker's time for that. `tail` is how long after the
forward the KV was whole, as a part of the forward.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from kv_ways import make_model
from traffic import make_prompts

from xgr_runtime.catalog import load_catalog
from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.trace.facts import Overlap, overlaps

WAYS = ("frames", "auto")


def traced(config: ServeConfig, prompts: list[list[int]]) -> list[Overlap]:
    """One request after the other, and what the trace says of their KV."""
    with Deployment(config) as deployment, XgrClient(deployment.url, timeout=120.0) as client:
        for prompt in prompts:
            client.generate(input_ids=prompt, beam_width=8, n=1)
        return overlaps(json.loads(client.trace(600.0)))


def line(way: str, o: Overlap) -> str:
    """One request."""
    moved = f"{o.chunks_inside} of {o.chunks} chunks, {o.bytes_inside / 1e6:.1f} of {o.bytes / 1e6:.1f} MB"
    return f"{way:>7}: {moved}, {o.seconds_inside * 1e3:.1f} of {o.seconds * 1e3:.1f} ms inside prefill"


def figures(found: list[Overlap]) -> dict[str, Any]:
    """Medians over all but the first, which pays for first-use costs."""
    own = found[1:]
    return {
        "requests": len(own),
        "chunks": own[0].chunks,
        "share": round(statistics.median(o.share for o in own), 3),
        "seconds_share": round(statistics.median(o.seconds_inside / o.seconds for o in own), 3),
        "tail": round(statistics.median(o.tail for o in own), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=6)
    args = parser.parse_args()
    catalog = load_catalog(args.catalog, args.model_path)
    prompts = make_prompts(catalog, args.requests, args.prompt_tokens)
    result: dict[str, Any] = {"prompt_tokens": args.prompt_tokens, "layers": args.layers}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args.model_path, args.layers, args.prompt_tokens)
        for way in WAYS:
            config = ServeConfig(
                model_path=folder,
                catalog=str(args.catalog),
                port=0,
                timeout_ms=120_000,
                log_level="WARNING",
                kv_transfer=way,
            )
            found = traced(config, prompts)
            for o in found:
                print(line(way, o))
            result[way] = figures(found)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
