"""Norm, rotary embedding and gate: the compiled kernels against their definition."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xgr_kernels.row_ops import gated_silu, norm_and_rotate, residual_norm

# float32: sums of up to a thousand squares in another order, and an exponential that is good to 1e-7
TOLERANCE: dict[str, Any] = {"rtol": 2e-6, "atol": 2e-6}
ROWS = pytest.mark.parametrize("N", [0, 1, 7, 65])


def draw(*shape: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator) * spread


@ROWS
@pytest.mark.parametrize("H", [1, 33, 192, 1000])
@pytest.mark.parametrize("adds", [True, False], ids=["delta", "alone"])
def test_residual_norm(N: int, H: int, adds: bool) -> None:
    x, delta, weight = draw(N, H, spread=3), draw(N, H) if adds else None, draw(H)
    ours, theirs = x.clone(), x.clone()
    got = residual_norm(ours, delta, weight, 1e-6)
    want = residual_norm(theirs, delta, weight, 1e-6, "reference")
    assert torch.equal(ours, theirs)  # the sum is one addition
    torch.testing.assert_close(got, want, **TOLERANCE)


@ROWS
@pytest.mark.parametrize(("heads", "D"), [((1, 1), 2), ((6, 2), 32), ((4, 4), 80), ((16, 8), 128)], ids=str)
@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
def test_norm_and_rotate(N: int, heads: tuple[int, int], D: int, normed: bool) -> None:
    Hq, Hkv = heads
    qkv, angle = draw(N, (Hq + 2 * Hkv) * D), draw(N, D // 2, spread=100)
    norms = (draw(D), draw(D + 1)[:D].contiguous()) if normed else None
    got = norm_and_rotate(qkv, heads, angle.cos(), angle.sin(), norms, 1e-6)
    want = norm_and_rotate(qkv.clone(), heads, angle.cos(), angle.sin(), norms, 1e-6, "reference")
    assert [x.shape for x in got] == [(N, Hq, D), (N, Hkv, D), (N, Hkv, D)]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
        assert ours.is_contiguous() and theirs.is_contiguous()


@ROWS
@pytest.mark.parametrize("size", [1, 31, 512])
def test_gated_silu(N: int, size: int) -> None:
    gate_up = draw(N, 2 * size, spread=20)
    # an exponent of up to 80 is rounded to 6e-8 of itself before the exponential is taken
    torch.testing.assert_close(gated_silu(gate_up), gated_silu(gate_up, "reference"), rtol=6e-6, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_numbers_that_are_none_stay_in_their_row(bad: float) -> None:
    x = draw(3, 64)
    x[1, 5] = bad
    good = torch.tensor([0, 2])
    angle = draw(3, 4)
    for got in (
        residual_norm(x.clone(), None, torch.ones(64), 1e-6),
        gated_silu(x.clone()),
        norm_and_rotate(x.clone(), (4, 2), angle.cos(), angle.sin(), None, 0.0)[0].flatten(1),
    ):
        assert not got[1].isfinite().all() or bad == -np.inf  # SiLU of -inf is 0 * -inf or 0
        assert got[good].isfinite().all()


def test_an_unknown_backend_is_refused() -> None:
    x = draw(1, 6)
    for call in (
        lambda: residual_norm(x, None, x[0], 0.0, "gpu"),
        lambda: norm_and_rotate(x, (1, 1), x[:, :1], x[:, :1], None, 0.0, "gpu"),
        lambda: gated_silu(x, "gpu"),
    ):
        with pytest.raises(ValueError, match="gpu"):
            call()
