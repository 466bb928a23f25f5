"""What the answer should be: exact beam search in plain Python, and Hugging Face's own.

The model runs in float32: Hugging Face computes norms and rotary angles in float32 whatever the weights are,
so that loading in float64 would make it slower and hardly more exact. What is summed up on top of it, the
log-softmax and the scores, is float64: the oracle adds no rounding of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from constrained_generate import constrained_generate
from items import Items, Sid

from xgr_kernels.trie import ScoreMode

Ranked = list[tuple[Sid, float]]


class Oracle:
    """One checkpoint, asked one request at a time."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM  # seconds, which most tests need not spend

        # Its products are small: a second thread waits for the first, and takes the core from the processes
        # under test.
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def beams(self, prompt: Sequence[int], items: Items, width: int, mode: ScoreMode = "vocab") -> Ranked:
        """The `width` best SIDs of an exact beam search, best first."""
        return self._search(prompt, items, width, mode)[0]

    def closest_cut(self, prompt: Sequence[int], items: Items, width: int) -> float:
        """The smallest gap between the last beam kept and the first one dropped, over all levels."""
        return min(self._search(prompt, items, width, "vocab")[1])

    def every_leaf(self, prompt: Sequence[int], items: Items, mode: ScoreMode) -> Ranked:
        """Every SID by its score, each computed by itself: no search, nothing pruned."""
        sids = list(items.by_sid)
        scores = self.scores(prompt, items, sids, mode)
        return sorted(zip(sids, scores, strict=True), key=lambda pair: -pair[1])

    @torch.inference_mode()
    def scores(
        self, prompt: Sequence[int], items: Items, sids: Sequence[Sid], mode: ScoreMode
    ) -> list[float]:
        """Of each SID the score, by itself: its tokens are given, and none is chosen."""
        logits = self._logits(prompt, [sid[:-1] for sid in sids])  # [S, depth, V]
        return [
            float(
                sum(
                    _log_probability(row[level], items.children[sid[:level]], mode)[t]
                    for level, t in enumerate(sid)
                )
            )
            for sid, row in zip(sids, logits, strict=True)
        ]

    def hugging_face(self, prompt: Sequence[int], items: Items, width: int) -> Ranked:
        """The same beams from `generate`, held to the catalog by `prefix_allowed_tokens_fn`."""
        return constrained_generate(self.model, [prompt], items.children, items.depth, width)[0]

    @torch.inference_mode()
    def _search(
        self, prompt: Sequence[int], items: Items, width: int, mode: ScoreMode
    ) -> tuple[Ranked, list[float]]:
        beams: Ranked = [((), 0.0)]
        gaps = []
        for _ in range(items.depth):
            logits = self._logits(prompt, [prefix for prefix, _ in beams])[:, -1]  # [beams, V]
            grown: Ranked = []
            for (prefix, score), row in zip(beams, logits, strict=True):
                legal = items.children[prefix]
                grown += [
                    ((*prefix, token), score + value)
                    for token, value in _log_probability(row, legal, mode).items()
                ]
            grown.sort(key=lambda pair: -pair[1])  # stable: equal scores stay by parent, then by token
            gaps.append(grown[width - 1][1] - grown[width][1] if len(grown) > width else math.inf)
            beams = grown[:width]
        return beams, gaps

    def _logits(self, prompt: Sequence[int], prefixes: list[Sid]) -> torch.Tensor:
        """Logits after the prompt and after each token of each prefix [N, tokens + 1, V], equal lengths."""
        first = self.model(torch.tensor([list(prompt)]), use_cache=True)
        last = first.logits[:, -1:].expand(len(prefixes), -1, -1)
        if not prefixes[0]:
            return last
        cache = copy.deepcopy(first.past_key_values)
        cache.batch_repeat_interleave(len(prefixes))
        after = self.model(torch.tensor(prefixes), past_key_values=cache, use_cache=True).logits
        return torch.cat([last, after], dim=1)


def _log_probability(logits: torch.Tensor, legal: list[int], mode: ScoreMode) -> dict[int, float]:
    """log p of each legal token; logits [V]."""
    wide = logits.double()
    total = torch.logsumexp(wide if mode == "vocab" else wide[legal], dim=-1)
    return dict(zip(legal, (wide[legal] - total).tolist(), strict=True))
