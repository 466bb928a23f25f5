"""How much of the ranked list bfloat16 keeps: the same requests in float32 and bfloat16, on every backend.

python tests/bench/rank_agreement.py --model-path DIR --catalog FILE --histories FILE [--prompts 100]

Each run searches the whole catalog for the users' histories, in one process, without servers. `top 10` is the
share of one run's ten best SIDs that are among the other's ten best; `first`, how often the best is the same;
`score`, the largest difference of a SID that both runs answered. Prints a table, and one JSON line last.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import Question, Search
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_kernels.trie import no_filter
from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.sglang.versions import installed_version

PAGE, BEST = 16, 10
PROMPT = 1024  # tokens at most

Ranked = dict[int, float]  # leaf -> score, best first


@dataclass(frozen=True)
class Agreement:
    """Means over the prompts, but for `score`."""

    top_10: float
    first: float
    score: float


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    catalog = load_catalog(args.catalog, args.model_path)
    prompts = list(itertools.islice(read_prompts(catalog, args.histories), args.prompts))
    backends = ["transformers"] if installed_version() is None else ["sglang", "transformers"]
    answers: dict[tuple[str, str, int], list[Ranked]] = {}
    for name, dtype in itertools.product(backends, ("float32", "bfloat16")):
        backend = load_backend(name, args.model_path, dtype)
        for width in args.beam_width:
            answers[name, dtype, width] = [ranked(backend, catalog, prompt, width) for prompt in prompts]
    found = {}
    for width in args.beam_width:
        runs = {
            (name, dtype): answers[name, dtype, width]
            for name in backends
            for dtype in ("float32", "bfloat16")
        }
        for one, other in pairs(backends):
            label = f"{' '.join(one)} / {' '.join(other)}, width {width}"
            agreement = compare(runs[one], runs[other])
            found[label] = vars(agreement)
            print(
                f"{label:60} top 10 {agreement.top_10:.4f}  first {agreement.first:.3f}  "
                f"score {agreement.score:.1e}"
            )
    print(json.dumps({"prompts": len(prompts), "agreement": found}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--histories", type=Path, required=True, help="JSON lines with item ids in `history`")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--beam-width", type=int, nargs="+", default=[50, 256])
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def pairs(backends: list[str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """bfloat16 against float32 of the same backend; then the backends against each other."""
    for name in backends:
        yield (name, "bfloat16"), (name, "float32")
    for one, other in itertools.combinations(backends, 2):
        for dtype in ("float32", "bfloat16"):
            yield (one, dtype), (other, dtype)


def read_prompts(catalog: Catalog, histories: Path) -> Iterator[list[int]]:
    for line in histories.read_text(encoding="utf-8").splitlines():
        leaves = catalog.leaves_of_items([str(item) for item in json.loads(line)["history"]])
        yield catalog.prompt_tokens(leaves.tolist(), PROMPT)[0]


def ranked(backend: ModelBackend, catalog: Catalog, prompt: list[int], width: int) -> Ranked:
    """The best SIDs of the whole catalog, as the workers would find them."""
    pages = np.arange(-(-len(prompt) // PAGE), dtype=np.int32)
    pool = KvPool(backend.identity, len(pages), PAGE)
    (hidden,) = CpuPrefillEngine(backend, pool).run(
        [Part(np.array(prompt, np.int32), pages)], lambda layer: None
    )
    engine = CpuDecodeEngine(backend, pool, max(1, catalog.depth - 2), width, "cpu")
    trie = catalog.trie
    question = Question(len(prompt), prompt[-1], width, width, "vocab", trie, no_filter())
    search = Search(question, pages, np.arange(width, dtype=np.int32), hidden, engine.tail_tokens)
    while not search.over:
        engine.step([search])
    leaves, scores = search.answer()
    return dict(zip(leaves.tolist(), scores.tolist(), strict=True))


def compare(ours: list[Ranked], theirs: list[Ranked]) -> Agreement:
    both = list(zip(ours, theirs, strict=True))
    best = [(list(a)[:BEST], list(b)[:BEST]) for a, b in both]
    return Agreement(
        top_10=float(np.mean([len(set(a) & set(b)) / len(a) for a, b in best])),
        first=float(np.mean([a[0] == b[0] for a, b in best])),
        score=max(abs(score - b[leaf]) for a, b in both for leaf, score in a.items() if leaf in b),
    )


if __name__ == "__main__":
    main()
