"""Attention kernels against float64 references at odd shapes, with poison wherever nobody may look."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import attention
from inputs import make_attention, make_prompts
from lab import Lab, error, near
from torch import Tensor

from xgr_kernels.attention.tail import cuda as tail_cuda
from xgr_kernels.attention.tail import reference as tail_reference

NORM = {torch.bfloat16: 5e-3, torch.float16: 8e-4, torch.float32: 1e-5}
NORM_REASON = (
    "one rounding of the output and one of the weights: each 2^-9 at most in bfloat16, 2^-12 in float16; "
    "float32 sums of some thousand terms"
)
LSE, LSE_REASON = (
    2e-3,
    "base 2, of scores up to 30 in float32 with approximate exponentials; 2e-3 weighs 0.14%",
)
EMPTY = -4e4  # FlashInfer's log-sum-exp of no keys is -50,000

SHARED = {
    "width-1": [(1, 37)],
    "one-token": [(5, 1), (3, 16), (2, 17)],
    "odd": [(3, 63), (130, 65), (1, 1), (77, 515)],
    "many": [(17, 40 + 13 * b) for b in range(11)],
    "long": [(257, 4099)],
    "no-keys": [(4, 0), (9, 33)],
}
"""Case -> (beams, prompt tokens) of each request."""

CAUSAL = {
    "one-token": [(1, 1)],
    "odd": [(1, 1), (63, 63), (130, 130), (17, 17)],
    "long": [(4099, 4099)],
    "prefix-and-chunk": [(37, 500), (1, 77), (256, 256), (129, 2048)],
}
"""Case -> (new tokens, all tokens) of each prompt."""

RARE = ((64, torch.bfloat16), (256, torch.bfloat16), (128, torch.float16))
"""Head dims and dtypes beside the usual ones: the library compiles its kernels for each, for minutes."""


def paged_cases(
    heads: tuple[int, int, int], dtype: torch.dtype, toy: bool = False, *, rare: bool = False
) -> list[Any]:
    """causal, heads, dtype and requests of every case of one shape of heads."""
    shape = f"{heads[0]}/{heads[1]}x{heads[2]}-{dtype}".replace("torch.", "")
    return [
        pytest.param(
            causal,
            heads,
            dtype,
            requests,
            id=f"{kind}-{case}-{shape}",
            marks=[pytest.mark.rare] if rare else [],
        )
        for kind, causal, cases in (("shared", False, SHARED), ("causal", True, CAUSAL))
        for case, requests in cases.items()
        if not (toy and case == "long")
    ]


PAGED = [
    *(
        case
        for heads in ((16, 8, 128), (32, 8, 128), (12, 2, 128))
        for case in paged_cases(heads, torch.bfloat16)
    ),
    *(case for dim, dtype in RARE for case in paged_cases((12, 2, dim), dtype, rare=True)),
]
TOY_PAGED = paged_cases((16, 8, 128), torch.bfloat16, toy=True)


@pytest.mark.parametrize("algorithm", ["fa2", "fa3"])
@pytest.mark.cases("causal, heads, dtype, requests", full=PAGED, toy=TOY_PAGED)
def test_paged(
    lab: Lab,
    causal: bool,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    requests: list[tuple[int, int]],
    algorithm: str,
) -> None:
    """Twice: the second time NaN lies in and behind the prompts' pages."""
    lab.needs(algorithm)
    Hq, Hkv, D = heads
    rows, lengths = [n for n, _ in requests], [length for _, length in requests]
    prompts = make_prompts(lab, lengths, Hkv, D, 1, dtype)
    q = lab.randn(sum(rows), Hq, D, dtype=dtype)
    want = [exact_rows(lab, q, rows, b, prompts.tokens(b), causal) for b in range(len(rows))]
    o, lse2 = (torch.cat(parts) for parts in zip(*want, strict=True))
    for poisoned in (False, True):
        if poisoned:
            prompts.poison()
        made = make_attention(lab, prompts, Hq, rows, causal, algorithm)
        made._workspace.o.fill_(torch.nan)
        made._workspace.lse2.fill_(torch.nan)
        got, got_lse = made.attend(q, prompts.k[0], prompts.v[0], D**-0.5)
        near(error(got, o), NORM[dtype], NORM_REASON)
        # No keys: minus infinity for us, -50,000 for the library.
        far = (got_lse.double().clamp(min=EMPTY) - lse2.clamp(min=EMPTY)).abs().max()
        near(float(far), LSE, LSE_REASON)


def exact_rows(
    lab: Lab, q: Tensor, rows: list[int], b: int, kv: tuple[Tensor, Tensor], causal: bool
) -> tuple[Tensor, Tensor]:
    """o and lse2 of request b's rows of q over its prompt's keys and values; right-aligned if causal."""
    begin, n, length = sum(rows[:b]), rows[b], len(kv[0])
    mine = q[begin : begin + n]
    if length == 0:
        none = torch.full(mine.shape[:2], -torch.inf, dtype=torch.float64, device=lab.where)
        return torch.zeros_like(mine, dtype=torch.float64), none
    seen = torch.arange(length - n + 1, length + 1, device=lab.where) if causal else None
    pieces = [  # a few rows at a time: the scores are [rows, Hq, L] in float64
        attention(mine[i : i + 256], *kv, mine.shape[2] ** -0.5, None if seen is None else seen[i : i + 256])
        for i in range(0, n, 256)
    ]
    return torch.cat([o for o, _ in pieces]), torch.cat([lse2 for _, lse2 in pieces])


TAIL = [
    # R, T, Hq, Hkv, D, dtype
    (1, 0, 16, 8, 128, torch.bfloat16),
    (1, 1, 16, 8, 128, torch.bfloat16),
    (7, 1, 32, 8, 128, torch.float16),
    (33, 2, 16, 8, 128, torch.bfloat16),
    (19, 8, 5, 1, 96, torch.bfloat16),
    (21, 3, 12, 4, 64, torch.float16),
    (9, 2, 8, 8, 256, torch.bfloat16),
    (13, 2, 40, 8, 128, torch.float32),
]


def tail_cases(sizes: list[tuple[int, int, int, int, int, torch.dtype]]) -> list[Any]:
    """Sizes with a name each."""
    return [
        pytest.param(
            R, T, (Hq, Hkv, D), dtype, id=f"R={R}-T={T}-{Hq}/{Hkv}x{D}-{dtype}".replace("torch.", "")
        )
        for R, T, Hq, Hkv, D, dtype in sizes
    ]


TOY_TAIL = tail_cases(TAIL[:5])


@pytest.mark.cases("R, T, heads, dtype", full=tail_cases(TAIL), toy=TOY_TAIL)
def test_tail(lab: Lab, R: int, T: int, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Random ancestors, lengths from 0 to T, rows without keys; NaN in tail slots that nobody may read."""
    Hq, Hkv, D = heads
    tail_rows = 2 * R + 5
    q, k, v = (lab.randn(R, H, D, dtype=dtype) for H in (Hq, Hkv, Hkv))
    lengths = lab.random.integers(0, T + 1, R)
    # Rows of one launch may store while others read, so what is stored to is read by nobody in it.
    shuffled = lab.random.permutation(tail_rows)
    rows, anc = shuffled[:R], shuffled[lab.random.integers(R, tail_rows, (R, T))]
    tail_k, tail_v = (torch.full((T, tail_rows, Hkv, D), torch.nan, dtype=dtype) for _ in range(2))
    for r in range(R):  # only what some row may read holds numbers
        for t in range(lengths[r]):
            tail_k[t, anc[r, t]], tail_v[t, anc[r, t]] = torch.randn(2, Hkv, D).to(dtype)
    o, lse2 = lab.randn(R, Hq, D, dtype=dtype), lab.randn(R, Hq, dtype=torch.float32) * 3 + 5
    lse2[::3] = -torch.inf
    lse2[1::3] = -5e4
    o[::3], o[1::3] = 0, 0
    indices = torch.from_numpy(anc), torch.from_numpy(rows), torch.from_numpy(lengths)
    theirs = tail_k.clone(), tail_v.clone()
    host_q, host_k, host_v, host_o = (x.cpu().double() for x in (q, k, v, o))
    want = tail_reference.attend(host_q, host_k, host_v, *theirs, *indices, host_o, lse2.cpu(), D**-0.5)
    ours = tail_k.to(lab.where), tail_v.to(lab.where)
    there_anc, there_rows, there_lengths = (x.to(lab.where).int() for x in indices)
    got = tail_cuda.attend(q, k, v, *ours, there_anc, there_rows, there_lengths, o, lse2, D**-0.5)
    near(error(got.cpu(), want), NORM[dtype], NORM_REASON)
    same = all(
        torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8)) for a, b in zip(ours, theirs, strict=True)
    )
    assert same, "k and v are to be copied bit for bit, and nothing else touched"
