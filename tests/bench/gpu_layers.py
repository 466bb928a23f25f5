"""Arithmetic, nothing measured: what a GPU would launch and move in the library's layers and in ours.

Usage: python tests/bench/gpu_layers.py [--matrix 989e12] [--copy 4.8e12] [--least 2e-6]

Launches are counted on models without memory. Each takes as long as its operations at the matrix rate, its
bytes at the copy rate, or `--least`, whichever is longest; the floor is that of products and attention alone,
without `--least`. The rates are an H200's published peaks, the least is assumed. Prints the table of
kernels/RESULTS.md, and one JSON line last.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

for folder in ("support", "gpu"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

import interpret_triton  # noqa: E402, F401, before what imports Triton
from floors import Heads, Shape, Work, causal_attention, shared_attention, tail_attention  # noqa: E402
from launches import Launch  # noqa: E402
from meta_models import decode_launches, meta_models, prefill_launches  # noqa: E402

SHAPE = Shape(28, 2048, 6144, 151936, Heads(16, 8, 128))  # Qwen3-1.7B
BEAMS, LENGTH = [256] * 4, 2048  # of a decode step, which has one tail token besides the newest
PROMPTS = [1024] * 8  # of a prefill
HEADER = [
    "case", "layers", "launches", "a layer's", "besides products", "GB of those", "TFLOP", "GB of products",
    "ms", "floor", "times the floor",
]  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Seconds of a launch are never fewer than `least`."""

    matrix: float  # FLOP/s
    copy: float  # bytes/s, read and written
    least: float = 0.0

    def seconds(self, work: Work) -> float:
        return max(work.flop / self.matrix, work.bytes / self.copy, self.least)


def main() -> None:
    rates = parse()
    library, ours = meta_models(
        "qwen3",
        num_hidden_layers=SHAPE.layers,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_attention_heads=SHAPE.heads.q,
        num_key_value_heads=SHAPE.heads.kv,
        head_dim=SHAPE.heads.dim,
        vocab_size=SHAPE.vocab,
        tie_word_embeddings=True,
    )
    tail = tail_attention(SHAPE.heads, sum(BEAMS), 1, stored=True)
    decode = [shared_attention(SHAPE.heads, BEAMS, [LENGTH] * len(BEAMS)), Work(0, 0), tail]
    prefill = [causal_attention(SHAPE.heads, PROMPTS, PROMPTS), Work(0, 0)]
    beams, tokens, prompts = sum(BEAMS), sum(PROMPTS), len(PROMPTS)
    rows = [
        row(["decode step", "library's"], decode_launches(library, beams), beams, decode, rates),
        row(["", "ours"], decode_launches(ours, beams), beams, decode, rates),
        row(
            ["prefill", "library's"],
            prefill_launches(library, tokens, prompts, False),
            tokens,
            prefill,
            rates,
        ),
        row(["", "ours"], prefill_launches(ours, tokens, prompts, True), tokens, prefill, rates),
    ]
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for line in rows:
        print(f"| {' | '.join(line)} |")
    print(json.dumps([dict(zip(HEADER, line, strict=True)) for line in rows]))


def parse() -> Rates:
    parser = argparse.ArgumentParser()
    parser.add_argument("--matrix", type=float, default=989e12, help="FLOP/s")
    parser.add_argument("--copy", type=float, default=4.8e12, help="bytes/s, read and written")
    parser.add_argument("--least", type=float, default=2e-6, help="seconds of any launch")
    args = parser.parse_args()
    return Rates(args.matrix, args.copy, args.least)


def row(named: list[str], made: list[Launch], rows: int, attention: list[Work], rates: Rates) -> list[str]:
    """`attention` is the work of a layer's launches for it, in any order; in `made` it is unknown."""
    products = [Work(x.flop, x.bytes) for x in made if x.product]
    known = [Work(0.0, x.bytes) for x in made if not x.product and x.bytes]
    unknown = len(made) - len(products) - len(known)
    assert unknown == len(attention) * SHAPE.layers
    attended = attention * SHAPE.layers
    seconds = sum(map(rates.seconds, [*products, *known, *attended]))
    free = Rates(rates.matrix, rates.copy)
    floor = sum(map(free.seconds, [SHAPE.linear(rows), *attended]))
    total = sum((*products, *attended), Work(0.0, 0.0))
    return [
        *named,
        f"{len(made):,}",
        f"{len(made) / SHAPE.layers:.1f}",
        f"{len(made) - len(products):,}",
        f"{sum(x.bytes for x in known) / 1e9:.1f}",
        f"{total.flop / 1e12:.2f}",
        f"{sum(x.bytes for x in products) / 1e9:.1f}",
        f"{1e3 * seconds:.1f}",
        f"{1e3 * floor:.1f}",
        f"{seconds / floor:.2f}",
    ]


if __name__ == "__main__":
    main()
