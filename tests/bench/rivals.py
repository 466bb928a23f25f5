"""Ours against the beam searches that others offer, in one run: same checkpoint, prompts, widths and threads.

python tests/bench/rivals.py --model-path DIR --catalog FILE --sglang-python PYTHON --vllm-python PYTHON

Ours is `xgr serve` with its default settings, constrained to the catalog, over HTTP. Against it:
  Hugging Face   `generate` with the same constraint, in the environment of this script
  SGLang         its stock server's own beams, over HTTP; PYTHON of `deploy/setup --sglang`
  vLLM           `LLM.beam_search` on the CPU; PYTHON of an environment that tests/bench/vllm_env.sh made
  vLLM, held     the same with a grammar of the catalog's SIDs, which each call compiles anew
Each runs in a process of its own, which keeps its clock; all are in float32 and may use all cores. One
request at a time they take turns of a few prompts, the same for all, with a pause after each turn, in which
threads that wait for more work by spinning give the cores back; then each gets several at a time, one rival
after the other. No prompt comes twice. The floor is the arithmetic of one of our requests at the rate of
large matrix products, torch's, which the rivals use, and our layers': the best of the run, and the median of
those that were timed after each of our turns, as cores that others share are not always as fast. What was not
measured says why. Prints tables, and one JSON line last; what rivals print goes to .cache/rivals/
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import torch
from floor import Shape
from rival_arena import HUGGING_FACE, OURS, SGLANG, VLLM, VLLM_HELD, Arena, matrix_rates
from rival_process import NotMeasuredError, RivalProcess
from rival_table import result, show
from traffic import make_prompts

from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.model.backends.huggingface import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
START = 600.0  # seconds until a rival is up


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    catalog = load_catalog(args.catalog, args.model_path)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    prompts = iter(make_prompts(catalog, 400 * len(args.widths), args.prompt_tokens))
    before = matrix_rates()
    with arena(args, catalog, prompts, cores) as ring:
        rows = [cell for width in args.widths for cell in ring.measure(width)]
    rates = {name: max(rate, before[name]) for name, rate in matrix_rates().items()}
    if ring.rates:  # ours may be left out
        rates |= {f"{name} beside our requests": median(r[name] for r in ring.rates) for name in rates}
    flop = {width: floor(args, catalog, width) for width in args.widths}
    show(rows, flop, ring, rates, cores)
    print(json.dumps(result(args, rows, flop, ring, rates)))


@contextmanager
def arena(
    args: argparse.Namespace, catalog: Catalog, prompts: Iterator[list[int]], cores: int
) -> Iterator[Arena]:
    """All that can be started, ours first."""
    settings = {
        "model": str(args.model_path.resolve()),
        "catalog": str(args.catalog.resolve()),
        "model_backend": args.model_backend,
        "our_threads": args.threads,
        "threads": cores,
        "depth": catalog.depth,
        "prompt_tokens": args.prompt_tokens,
        "widths": args.widths,
        "sids": "",
    }
    scripts = {
        OURS: ("ours.py", args.our_python),
        HUGGING_FACE: ("hugging_face.py", sys.executable),
        SGLANG: ("sglang_server.py", args.sglang_python),
        VLLM: ("vllm_offline.py", args.vllm_python),
        VLLM_HELD: ("vllm_offline.py", args.vllm_python),
    }
    ring = Arena(args, catalog, prompts)
    logs = ROOT / ".cache" / "rivals"
    logs.mkdir(parents=True, exist_ok=True)
    sids = logs / "sids.json"
    sids.write_text(json.dumps(catalog.sids.tolist()))
    with ExitStack() as stack:
        for name, (script, python) in scripts.items():
            log = stack.enter_context((logs / f"{name}.log").open("w"))
            own = settings | ({"sids": str(sids)} if name == VLLM_HELD else {})
            process = RivalProcess(script, python, own, log, environ(name, python))
            stack.callback(process.close)
            try:
                if name in args.without:
                    raise NotMeasuredError("left out by --without")
                if not python:
                    raise NotMeasuredError(f"no --{name.lower().partition(',')[0]}-python was given")
                print(f"starting {name} ...", file=sys.stderr, flush=True)
                ring.facts[name] = process.start(START)
                ring.up[name] = process
            except NotMeasuredError as error:
                ring.absent[name] = str(error)
        yield ring


def environ(name: str, python: str) -> dict[str, str]:
    """vLLM asks for Intel's OpenMP, which pip puts into its environment and nothing loads."""
    library = Path(python).parent.parent / "lib" / "libiomp5.so"
    if name not in (VLLM, VLLM_HELD):
        return {}
    return {"PYTHONPATH": "", **({"LD_PRELOAD": str(library.resolve())} if library.exists() else {})}


def floor(args: argparse.Namespace, catalog: Catalog, width: int) -> float:
    """FLOP of one of our requests."""
    checkpoint = open_checkpoint(args.model_path)
    shape = Shape.of(args.model_path, checkpoint.identity("float32"), checkpoint.q_heads)
    rows = [min(width, nodes) for nodes in catalog.trie.nodes[:-1]]
    return shape.request_flop(args.prompt_tokens, rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument(
        "--widths", type=lambda text: [int(part) for part in text.split(",")], default=[128, 256]
    )
    parser.add_argument("--prompt-tokens", type=int, default=513)
    parser.add_argument("--at-a-time", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20, help="timed one by one, per rival and width")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="after which a slow rival is asked no more"
    )
    parser.add_argument(
        "--patience", type=float, default=300.0, help="seconds for one answer, or a few batches"
    )
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of our workers, as `xgr serve --threads`")
    parser.add_argument("--model-backend", default="auto", help="of ours, as `xgr serve --model-backend`")
    parser.add_argument("--our-python", default=sys.executable, help="environment of ours")
    parser.add_argument("--sglang-python", default="", help="environment of SGLang")
    parser.add_argument("--vllm-python", default="", help="environment of vLLM")
    parser.add_argument("--without", nargs="*", default=[], help="names of rivals to leave out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
