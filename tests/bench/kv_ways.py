"""What it costs to get a prompt's KV to the decode worker: as frames, pulled, and read in place, in one run.

python tests/bench/kv_ways.py --catalog FILE --model-path DIR [--prompt-tokens 2000] [--layers 16]

The model has random weights and much KV for its size; its tokenizer is that of `--model-path`, which need fit
the catalog only. The three deployments take turns, so that a busy machine slows all of them alike. Prints
medians per request, and one JSON line last; `cpu` is what both workers' processes used.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from traffic import make_prompts, timed
from transformers import AutoModelForCausalLM, Qwen3Config

from xgr_runtime.catalog import load_catalog
from xgr_runtime.checkpoint import read_config
from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

WAYS: dict[str, dict[str, Any]] = {
    "frames": {"kv_transfer": "frames"},
    "pull": {"layout": "split"},
    "in place": {"layout": "colocated"},
}
WORKERS = ("prefill-0", "decode-0")


def make_model(folder: Path, tokenizer_of: Path, layers: int, tokens: int) -> None:
    """A decoder whose KV is large beside its work: 4 KiB per token and layer, hidden size 128."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=read_config(tokenizer_of)["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=tokens + 16,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in tokenizer_of.glob("tokenizer*"):
        shutil.copy(file, folder)


def measure(config: ServeConfig, prompts: list[list[int]], warm_up: int) -> list[tuple[float, float, float]]:
    """Of each prompt: seconds until the answer, of processor time in the prefill and in the decode worker."""
    figures = []
    with Deployment(config) as deployment, XgrClient(deployment.url, timeout=120.0) as client:
        workers = [psutil.Process(deployment.pid(name)) for name in WORKERS]
        for prompt in prompts:
            before = [sum(worker.cpu_times()[:2]) for worker in workers]
            seconds, _ = timed(lambda p=prompt: client.generate(input_ids=p, beam_width=8, n=1))  # type: ignore[misc]
            after = [sum(worker.cpu_times()[:2]) for worker in workers]
            figures.append((seconds, after[0] - before[0], after[1] - before[1]))
    return figures[warm_up:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=8, help="per deployment and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2)
    args = parser.parse_args()
    catalog = load_catalog(args.catalog, args.model_path)
    prompts = make_prompts(catalog, args.warm_up + args.requests, args.prompt_tokens)
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args.model_path, args.layers, args.prompt_tokens)
        for _ in range(args.rounds):
            for way, settings in WAYS.items():
                config = ServeConfig(
                    model_path=folder,
                    catalog=str(args.catalog),
                    port=0,
                    timeout_ms=120_000,
                    log_level="WARNING",
                    **settings,
                )
                found[way] += measure(config, prompts, args.warm_up)
    names = ("seconds", "prefill_cpu", "decode_cpu")
    figures: dict[str, Any] = {
        way: dict(zip(names, (round(statistics.median(x), 3) for x in zip(*rows, strict=True)), strict=True))
        for way, rows in found.items()
    }
    figures |= {"prompt_tokens": args.prompt_tokens, "kv_bytes": args.prompt_tokens * args.layers * 4096}
    for name, value in figures.items():
        print(f"{name:>16}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
