"""Whole requests through both engines in one process, against Hugging Face's model in float32."""

from __future__ import annotations

import pytest
from engines import Engines, finish
from lab import Lab
from models import LAYERS, TOY_LAYERS
from yardstick import LENGTHS, Yardstick, small, widths_of


@pytest.mark.cases("layers", full=LAYERS, toy=TOY_LAYERS)
def test_engines(lab: Lab, subtests: pytest.Subtests, layers: str) -> None:
    """Packed prompts, then one cohort of requests of all widths."""
    made = small(lab)
    yardstick = Yardstick(lab, made)
    lengths = LENGTHS[:2] if lab.toy else LENGTHS
    both = Engines(lab, made, 2 * sum(lengths) + 64, layers)
    parts = [both.part(both.prompt(length)) for length in lengths]
    hidden = both.prefill(sum(lengths)).run(parts, lambda layer: None)
    widths = widths_of(lab, len(parts))
    cohorts = both.decode(sum(widths), max(widths))
    for given in (True, False):
        searches = [
            both.search(part, state if given else None, width, width)
            for part, state, width in zip(parts, hidden, widths, strict=True)
        ]
        finish(cohorts, searches)
        for part, search in zip(parts, searches, strict=True):
            leaves, scores = search.answer()
            sids = [tuple(sid) for sid in made.catalog.sids[leaves].tolist()]
            case = f"L={len(part.tokens)}-W={search.question.width}{'' if given else '-no-hidden-state'}"
            ours = list(zip(sids, scores.tolist(), strict=True))
            with subtests.test(case):
                yardstick.compare(part.tokens.tolist(), search.question.width, ours)
