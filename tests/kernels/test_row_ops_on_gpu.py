"""The Triton kernels of rows against their definition: on a GPU if there is one, else interpreted."""

import pytest
import torch
from pairs import by_pairs
from torch import Tensor

from xgr_kernels.row_ops import KvSlots, gated_silu, norm_and_rotate, reference, residual_norm

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
# An interpreter warns where a GPU overflows in silence.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# float32: sums of up to a thousand squares in another order. The others: one rounding at the end, of half a
# step; the interpreter cuts bfloat16 off instead, which is up to a whole one.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}
DTYPES = list(TOLERANCE)


def draw(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * spread).to(dtype).to(DEVICE)


def assert_near(got: Tensor, want: Tensor) -> None:
    """`want` is float32, of the same rounded inputs."""
    torch.testing.assert_close(got.float(), want, rtol=1.01 * TOLERANCE[got.dtype], atol=4e-6)


@by_pairs({"dtype": DTYPES, "N": [0, 1, 5], "H": [1, 33, 192, 1000], "adds": [True, False]})
def test_residual_norm(dtype: torch.dtype, N: int, H: int, adds: bool) -> None:
    x, weight = draw(N, H, dtype=dtype, spread=3), draw(H, dtype=dtype)
    delta = draw(N, H + 1, dtype=dtype)[:, 1:].contiguous() if adds else None
    total = x.float() if delta is None else x.float() + delta.float()
    got = residual_norm(x, delta, weight, 1e-6, "cuda")
    assert_near(x, total)  # the residual stream, rounded once, and the norm is that of what is kept
    assert_near(got, reference.residual_norm(x.float(), None, weight.float(), 1e-6))


HEADS = [((1, 1), 2), ((6, 2), 32), ((4, 4), 80), ((3, 1), 6), ((16, 8), 128)]


@by_pairs(
    {"dtype": DTYPES, "N": [0, 1, 4], "heads,D": HEADS, "normed": [True, False], "stores": [True, False]}
)
def test_norm_and_rotate(
    dtype: torch.dtype, N: int, heads: tuple[int, int], D: int, normed: bool, stores: bool
) -> None:
    Hq, Hkv = heads
    qkv, angle = draw(N, (Hq + 2 * Hkv) * D, dtype=dtype), draw(N, D // 2, spread=100)
    norms = (draw(D, dtype=dtype), draw(D + 1, dtype=dtype)[1:].contiguous()) if normed else None
    exact = None if norms is None else (norms[0].float(), norms[1].float())
    cos, sin = angle.cos(), angle.sin()
    want = reference.norm_and_rotate(qkv.float().clone(), heads, cos, sin, exact, 1e-6)
    slots = torch.arange(N, device=DEVICE).flip(0) * 2 + 1
    pages = torch.full((2, 2 * N + 2, Hkv, D), torch.nan, dtype=dtype, device=DEVICE)
    stored = KvSlots(pages[0], pages[1], slots) if stores else None
    before = qkv.clone()
    q, k, v = norm_and_rotate(qkv, heads, cos, sin, norms, 1e-6, "cuda", stored)
    assert torch.equal(qkv, before)
    if stores:
        k, v = pages[0][slots], pages[1][slots]
        assert pages[:, 0::2].isnan().all()  # places of nobody
    for got, wanted in zip((q, k, v), want, strict=True):
        assert_near(got, wanted)


@by_pairs({"dtype": DTYPES, "N": [0, 1, 4], "size": [1, 31, 512, 1100]})
def test_gated_silu(dtype: torch.dtype, N: int, size: int) -> None:
    gate_up = draw(N, 2 * size, dtype=dtype, spread=20)
    got, want = gated_silu(gate_up, "cuda"), reference.gated_silu(gate_up.float())
    # an exponent of up to 80 is rounded to 6e-8 of itself before the exponential is taken
    torch.testing.assert_close(got.float(), want, rtol=6e-6 + 1.01 * TOLERANCE[dtype], atol=4e-6)


def test_gates_that_are_far_from_zero() -> None:
    gate_up = torch.tensor([[-1e30, -200.0, 200.0, 1.0, 2.0, 3.0]], device=DEVICE)
    torch.testing.assert_close(gated_silu(gate_up, "cuda"), torch.tensor([[0.0, 0.0, 600.0]], device=DEVICE))


def test_rows_that_are_no_numbers_stay_alone() -> None:
    x = draw(3, 64)
    x[1, 5] = torch.nan
    good, angle = torch.tensor([0, 2]), draw(3, 4)
    for got in (
        residual_norm(x.clone(), None, torch.ones(64, device=DEVICE), 1e-6, "cuda"),
        gated_silu(x, "cuda"),
        norm_and_rotate(x, (4, 2), angle.cos(), angle.sin(), None, 0.0, "cuda")[0].flatten(1),
    ):
        assert got[1].isnan().any() and got[good].isfinite().all()


@pytest.mark.parametrize("wrong", ["strided", "another type"])
def test_what_a_kernel_would_misread_is_refused(wrong: str) -> None:
    x = draw(4, 12)
    x = x[:, ::2] if wrong == "strided" else x[:, :6].contiguous()
    weight = draw(6, dtype=torch.float16 if wrong == "another type" else torch.float32)
    with pytest.raises(ValueError, match="must be dense"):
        residual_norm(x, None, weight, 0.0, "cuda")
