"""One captured launch, replayed with other requests: what engines rely on and no eager call shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from inputs import PAGE, Prompts, make_prompts
from lab import Lab, error
from test_attention import NORM, NORM_REASON, exact_rows

from xgr_kernels.attention.paged import AttentionSizes, PagedAttention, Workspace

ROWS, REQUESTS, PAGES = 384, 8, 700
HEADS = (16, 8, 128)

SHARED = {
    "all-rows": [(128, 900)] * 3,
    "one-row": [(1, 5)],
    "uneven": [(200, 33), (1, 4000), (77, 1), (3, 640)],
    "all-requests": [(7 * b + 1, 60 * b + 1) for b in range(REQUESTS)],
    "one-wide": [(384, 5000)],
    "nothing-but-padding-behind": [(13, 1000)],
}
"""Cohort -> (rows, tokens) of each request."""

CAUSAL = {
    "all-rows": [(128, 128)] * 3,
    "one-row": [(1, 900)],
    "uneven": [(200, 200), (1, 4000), (77, 77), (3, 640)],
    "chunk": [(384, 5000)],
    "all-requests": [(7 * b + 1, 60 * b + 1) for b in range(REQUESTS)],
}


@pytest.mark.parametrize("algorithm", ["fa2", "fa3"])
@pytest.mark.parametrize("causal", [False, True], ids=["shared", "causal"])
def test_replays(lab: Lab, causal: bool, algorithm: str) -> None:
    """Captured at the largest plan; then planned and replayed for one cohort after another, twice round."""
    lab.needs(algorithm)
    cohorts = CAUSAL if causal else SHARED
    if lab.toy:
        cohorts = {
            name: [(n // 20 + 1, n // 20 + length // 40 + 1) for n, length in of]
            for name, of in cohorts.items()
        }
    _one_graph(
        lab, algorithm, causal, cohorts, {name: _prompts(lab, cohort) for name, cohort in cohorts.items()}
    )


def _prompts(lab: Lab, cohort: Sequence[tuple[int, int]]) -> Prompts:
    return make_prompts(lab, [length for _, length in cohort], HEADS[1], HEADS[2], 1, torch.bfloat16)


def _one_graph(
    lab: Lab,
    algorithm: str,
    causal: bool,
    cohorts: dict[str, list[tuple[int, int]]],
    prompts: dict[str, Prompts],
) -> None:
    Hq, Hkv, D = HEADS
    sizes = AttentionSizes(Hq, Hkv, D, PAGE, torch.bfloat16, lab.where, D**-0.5)
    workspace = Workspace(sizes, rows=ROWS, requests=REQUESTS, page_entries=PAGES)
    made = PagedAttention(
        sizes,
        workspace,
        rows=ROWS,
        requests=REQUESTS,
        page_entries=PAGES,
        causal=causal,
        algorithm=algorithm,
    )
    # What the graph reads: a query for every row, and a pool that holds any cohort's pages.
    q = torch.zeros(ROWS, Hq, D, dtype=torch.bfloat16, device=lab.where)
    pages = max(of.k.shape[1] for of in prompts.values())
    k, v = (torch.zeros(pages, PAGE, Hkv, D, dtype=torch.bfloat16, device=lab.where) for _ in range(2))
    answer: list[torch.Tensor] = []

    def launch() -> None:
        answer[:] = [made.attend(q, k, v, D**-0.5)[0]]

    replay = lab.device.capture(launch)
    off: dict[str, float] = {}
    for turn in range(lab.rounds(2)):
        for name, cohort in cohorts.items():
            of, rows = prompts[name], [n for n, _ in cohort]
            used, total = of.k.shape[1], sum(rows)
            k[:used], v[:used] = of.k[0], of.v[0]
            q.copy_(lab.randn(ROWS, Hq, D))
            workspace.o.fill_(7.0)
            made.plan(np.cumsum([0, *rows]).tolist(), of.pages, of.lengths)
            replay()
            got = answer[0]
            want = torch.cat([exact_rows(lab, q, rows, b, of.tokens(b), causal)[0] for b in range(len(rows))])
            off[f"{name}, turn {turn}"] = error(got[:total], want)
            if not got[total:].isfinite().all():  # padding rows go through the layers that follow
                off[f"{name}, turn {turn}, padding"] = torch.nan
    beyond = {case: found for case, found in off.items() if not found <= NORM[torch.bfloat16]}
    assert not beyond, NORM_REASON
