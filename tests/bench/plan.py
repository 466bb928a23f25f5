"""How well `xgr plan` foresees what deployments on this machine's cores bear.

python tests/bench/plan.py [--shapes 1+1,1+2,2+2] [--slo-ms N] [--seconds 15]

Serves a made model with one prefill and one decode worker, has `xgr bench --calibrate` learn what launches
cost, and measures the processor time of router and client for a request. Then it serves each shape, measures
the highest rate that keeps the promise (`--rate auto`), and sets it beside that of the simulation, in which
all processes share this machine's cores. Prints a line for each shape; one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from checkpoints import build
from serve import Serve
from tokenizers import Tokenizer, models, pre_tokenizers

from xgr_runtime.planning.devices import read_costs, read_devices
from xgr_runtime.planning.search import Planner
from xgr_runtime.planning.simulation import MixPart
from xgr_runtime.planning.traffic import PlannedTraffic, drawn
from xgr_runtime.scheduling.cost_model import alone, prompt_work, search_work

VOCAB, FIRST, CODES, ITEMS = 1024, 64, 256, 20_000


def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--shapes", default="1+1,1+2,2+2", help="prefill + decode workers, a point each")
    text = "absent: four times what launches of one request cost"
    flags.add_argument("--slo-ms", type=float, help=text)
    flags.add_argument("--tokens", type=int, default=300)
    flags.add_argument("--width", type=int, default=64)
    flags.add_argument("--seconds", type=float, default=15.0, help="that are measured at each rate")
    flags.add_argument("--layers", type=int, default=6)
    args = flags.parse_args(argv)
    shapes = [tuple(map(int, shape.split("+"))) for shape in args.shapes.split(",")]
    points = []
    with tempfile.TemporaryDirectory(prefix="xgr-plan-") as folder:
        files = made(Path(folder), args.layers)
        costs = calibrated(files, args)
        args.slo_ms = args.slo_ms or 4e3 * alone_seconds(files, args)
        for prefill, decode in shapes:
            point = {
                "prefill": prefill,
                "decode": decode,
                "foreseen": foreseen(files, costs, args, prefill, decode),
            }
            with serving(files, args, prefill, decode) as (url, _):
                line = bench(files, args, url, "--rate", "auto", "--start-rate", str(point["foreseen"] / 2))
            point["measured"] = line["max_rate"]
            ratio = point["foreseen"] / point["measured"] if point["measured"] else float("nan")
            points.append({**point, "ratio": ratio})
            print(
                f"{prefill} + {decode}: foreseen {point['foreseen']:.1f}/s, measured {point['measured']}/s, "
                f"{ratio:.2f} of it",
                flush=True,
            )
    print(json.dumps({"costs": costs, "slo_ms": args.slo_ms, "points": points}))
    return 0


def made(folder: Path, layers: int) -> Path:
    """A model large enough that launches take milliseconds, and a catalog in its tokens."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": layers, "head_dim": 64}
    build(
        "qwen3", 4, vocab_size=VOCAB, num_attention_heads=8, max_position_embeddings=4096, **sizes
    ).save_pretrained(folder / "model")
    spelt = Tokenizer(models.WordLevel({f"t{token}": token for token in range(VOCAB)}, unk_token="t0"))
    spelt.pre_tokenizer = pre_tokenizers.Whitespace()
    spelt.save(str(folder / "model" / "tokenizer.json"))
    codes = np.random.default_rng(0).choice(CODES**3, ITEMS, replace=False)
    levels = np.stack(np.unravel_index(codes, (CODES,) * 3), axis=1) + FIRST + CODES * np.arange(3)
    (folder / "index.json").write_text(
        json.dumps({f"i{row}": sid for row, sid in enumerate(levels.tolist())})
    )
    (folder / "catalog.json").write_text(json.dumps({"sid_format": "token_ids"}))
    return folder


@contextmanager
def serving(files: Path, args: argparse.Namespace, prefill: int, decode: int) -> Iterator[tuple[str, Serve]]:
    """A deployment of that shape, each worker on one thread."""
    settings = {
        "model-path": files / "model",
        "catalog": files / "index.json",
        "port": 0,
        "layout": "split",
        "sharing": "none",
        "prefill-workers": prefill,
        "decode-workers": decode,
        "threads": 1,
        "kv-bytes": 256 << 20,
        "max-beam-width": args.width,
        "hedge-after": 0,
        "silence": 60,
        "lease": 90,
    }
    deployment = Serve([f"--{name}={value}" for name, value in settings.items()], os.environ)
    try:
        with suppress(AssertionError):  # a busy machine may need more than a test waits for
            deployment.url()
        yield deployment.url(), deployment
    finally:
        deployment.close()


def bench(files: Path, args: argparse.Namespace, url: str, *flags: str) -> dict[str, Any]:
    """The JSON line of a run of `xgr bench`."""
    command = [
        sys.executable,
        "-m",
        "xgr_runtime.cli",
        "bench",
        "--url",
        url,
        "--catalog",
        str(files / "index.json"),
    ]
    command += ["--model-path", str(files / "model"), "--prompt-tokens", str(args.tokens)]
    command += [
        "--beam-width",
        str(args.width),
        "--slo-ms",
        str(args.slo_ms or 1000),
        "--duration",
        str(args.seconds),
    ]
    done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True, check=True)
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def calibrated(files: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What launches cost, and milliseconds of processor time of a request in router and client."""
    with serving(files, args, 1, 1) as (url, deployment):
        router = deployment.worker("router")
        bench(files, args, url, "--calibrate", str(files / "costs.json"))
        before = sum(router.cpu_times()[:2])
        point = bench(files, args, url, "--in-flight", "1", "--warm-up", "0")["points"][0]
        router_ms = 1e3 * (sum(router.cpu_times()[:2]) - before) / point["sent"]
    costs: dict[str, Any] = json.loads((files / "costs.json").read_text())
    return {**costs, "router_ms": router_ms, "client_ms": point["client_ms"]}


def alone_seconds(files: Path, args: argparse.Namespace) -> float:
    """Of a request that nobody else is beside, by the costs."""
    costs = read_costs(files / "costs.json")
    search = search_work(args.tokens, [1, args.width, args.width])
    return costs.overhead + alone(costs.prefill, prompt_work(0, args.tokens)) + alone(costs.decode, search)


def foreseen(
    files: Path, costs: dict[str, Any], args: argparse.Namespace, prefill: int, decode: int
) -> float:
    """The highest rate of a played deployment of that shape."""
    (files / "devices.toml").write_text(
        f"router_ms = {costs['router_ms']}\nclient_ms = {costs['client_ms']}\n"
        f"cores = {len(os.sched_getaffinity(0))}\n"
        f'[[devices]]\nname = "core"\nprice = 1\ncosts = "costs.json"\nmax_rows = {2 * args.width}\n'
    )
    kinds, around = read_devices(files / "devices.toml")
    sizes = {"prompt_tokens": args.tokens, "beam_width": args.width, "codebook": CODES, "items": ITEMS}
    traffic = PlannedTraffic(rate=1.0, slo_ms=args.slo_ms, **sizes)
    planner = Planner(kinds, around, traffic, drawn(traffic, 1000, 0))
    mix = (MixPart(kinds[0], "prefill", prefill), MixPart(kinds[0], "decode", decode))
    return planner.highest(mix)[0]


if __name__ == "__main__":
    sys.exit(main())
