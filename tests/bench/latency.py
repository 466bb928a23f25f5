"""One request at a time, ours over HTTP against Hugging Face `generate` with the same constraint, in one run.

python tests/bench/latency.py --model-path DIR --catalog FILE [--beam-width 256] [--prompt-tokens 512]

Both sides answer the same prompts, alternating, after a warm-up; what both answered is compared. `overhead`
is what a request costs outside of the model's own forward passes: HTTP, wire, selection and scheduling, as
the client's clock sees it. Prints a table, and one JSON line last.
"""

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from traffic import make_prompts, timed
from transformers import AutoModelForCausalLM

from xgr_runtime.answer import Answer
from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.launch import Deployment

TIE = 5e-5  # closer scores may come in either order: float32 sums in another order


class HuggingFace:
    """Exact constrained beam search as the library offers it."""

    def __init__(self, model_path: Path, catalog: Catalog) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.depth = catalog.depth
        self.children: dict[tuple[int, ...], list[int]] = {}
        for length in range(catalog.depth):
            for prefix in np.unique(catalog.sids[:, : length + 1], axis=0).tolist():
                self.children.setdefault(tuple(prefix[:-1]), []).append(prefix[-1])

    @torch.inference_mode()
    def generate(self, prompt: list[int], width: int) -> tuple[list[list[int]], list[float]]:
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=self.depth,
            min_new_tokens=self.depth,
            do_sample=False,
            early_stopping=True,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
            eos_token_id=None,
            prefix_allowed_tokens_fn=lambda _, so_far: self.children[tuple(so_far[len(prompt) :].tolist())],
        )
        return out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist()


def agree(answer: Answer, sids: list[list[int]], scores: list[float]) -> bool:
    """The same SIDs in the same order but for ties, scores within 1e-4."""
    ours = answer.meta_info.beam_results
    if len(ours) != len(sids):
        return False
    near = all(abs(r.meta_info.cumulative_logprob - s) < 1e-4 for r, s in zip(ours, scores, strict=True))
    moved = [i for i, (r, sid) in enumerate(zip(ours, sids, strict=True)) if r.output_ids != sid]
    tied = all(any(j != i and abs(scores[i] - scores[j]) < TIE for j in range(len(scores))) for i in moved)
    return near and tied


def measure(args: argparse.Namespace, client: XgrClient, rival: HuggingFace, prompts: list[list[int]]) -> Any:
    width = args.beam_width
    ours, overheads, theirs, equal = [], [], [], 0
    for number, prompt in enumerate(prompts):
        warm = number >= args.warm_up
        seconds, answer = timed(lambda p=prompt: client.generate(input_ids=p, beam_width=width))  # type: ignore[misc]
        if warm:
            timing = answer.meta_info.timing
            ours.append(seconds)
            overheads.append(seconds - timing.prefill - timing.forward)
        if number == 0 or (warm and len(theirs) < args.rival_requests):
            seconds, (sids, scores) = timed(lambda p=prompt: rival.generate(p, width))  # type: ignore[misc]
            equal += agree(answer, sids, scores)
            if warm:
                theirs.append(seconds)
    return {
        "beam_width": width,
        "prompt_tokens": args.prompt_tokens,
        "requests": len(ours),
        "ours_p50_ms": round(1e3 * statistics.median(ours), 1),
        "ours_p90_ms": round(1e3 * statistics.quantiles(ours, n=10)[-1], 1),
        "overhead_p50_ms": round(1e3 * statistics.median(overheads), 2),
        "hugging_face_p50_ms": round(1e3 * statistics.median(theirs), 1),
        "hugging_face_requests": len(theirs),
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 1),
        "compared": len(theirs) + 1,
        "equal": equal,
    }


def throughput(args: argparse.Namespace, client: XgrClient, prompts: list[list[int]]) -> dict[str, float]:
    """Ours alone, `--in-flight` requests at a time: two rounds of the prompts, of which the second counts."""
    with ThreadPoolExecutor(args.in_flight) as callers:
        for _ in range(2):
            seconds, _ = timed(
                lambda: list(
                    callers.map(lambda p: client.generate(input_ids=p, beam_width=args.beam_width), prompts)
                )
            )
    return {"in_flight": args.in_flight, "ours_requests_per_s": round(len(prompts) / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--beam-width", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rival-requests", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=8, help="for requests per second")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="per worker, as `xgr serve --threads`")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)  # the rival has the whole machine
    catalog = load_catalog(args.catalog, args.model_path)
    prompts = make_prompts(catalog, args.warm_up + args.requests, args.prompt_tokens)
    config = ServeConfig(
        model_path=str(args.model_path),
        catalog=str(args.catalog),
        port=0,
        threads=args.threads,
        log_level="WARNING",
    )
    with Deployment(config) as deployment, XgrClient(deployment.url) as client:
        figures = measure(args, client, HuggingFace(args.model_path, catalog), prompts)
        figures |= throughput(args, client, prompts)
    figures |= {"cores": cores, "threads_per_worker": args.threads or "cores / workers"}
    for name, value in figures.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
