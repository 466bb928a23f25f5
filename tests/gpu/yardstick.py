"""What an answer is held against: Hugging Face's model in float32, every score and every SID found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from items import Items
from lab import Lab, near
from models import Made, make
from oracle import Oracle, Ranked

LENGTHS = (1, 17, 64, 150)
WIDTHS = (13, 40, 1)
TOY_WIDTHS = (2, 4)
ITEMS, CODEBOOK = 120, 24
FLOAT32 = 1e-4
REASON = "float32: 1e-4; bfloat16: twice what Hugging Face's own model in bfloat16 is off by, and 0.03"
MISSED = 0.1
MISSED_REASON = "of the exact beams, those that rounding pushed over a cut; none in float32"


class Yardstick:
    """A checkpoint in Hugging Face's hands: exact scores of every SID, and how far off bfloat16 may be."""

    def __init__(self, lab: Lab, made: Made) -> None:
        self._exact = Oracle(made.folder)
        self._float32 = not lab.cuda
        if not self._float32:
            self._rounded = Oracle(made.folder)
            self._rounded.model.to(torch.bfloat16)
        catalog = made.catalog
        self.items = Items({str(i): tuple(sid) for i, sid in enumerate(catalog.sids.tolist())})

    def compare(self, prompt: Sequence[int], width: int, ours: Ranked) -> None:
        """Scores within what the dtype rounds, and the beams of an exact search."""
        exact = dict(self._exact.every_leaf(prompt, self.items, "vocab"))
        limit = FLOAT32
        if not self._float32:
            rounded = dict(self._rounded.every_leaf(prompt, self.items, "vocab"))
            limit = 2 * max(abs(rounded[sid] - score) for sid, score in exact.items()) + 0.03
        off = [abs(score - exact[sid]) if sid in exact else float("inf") for sid, score in ours]
        near(max(off, default=float("inf")), limit, REASON)
        best = [sid for sid, _ in self._exact.beams(prompt, self.items, width)]
        found = {sid for sid, _ in ours}
        assert len(ours) == len(found) == len(best), "as many, and each once"
        missed = sum(sid not in found for sid in best) / len(best)
        near(missed, 0.0 if self._float32 else MISSED, MISSED_REASON)
        assert all(a >= b for (_, a), (_, b) in pairwise(ours)), "best first"


def widths_of(lab: Lab, count: int) -> list[int]:
    """Of so many requests: from one beam to a good part of the catalog."""
    widths = TOY_WIDTHS if lab.toy else WIDTHS
    return [widths[i % len(widths)] for i in range(count)]


def small(lab: Lab) -> Made:
    """A model and a catalog that an exact search over every leaf can bear."""
    return make(lab, "toy" if lab.toy else "small", ITEMS, CODEBOOK)
