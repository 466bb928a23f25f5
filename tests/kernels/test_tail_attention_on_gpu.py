"""The Triton kernel of tail attention against the definition: on a GPU if there is one, else interpreted."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from pairs import by_pairs
from torch import Tensor

from xgr_kernels.attention.tail import reference, tail_attention_merge

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# The reference rounds a float64 result to the same dtype once, the kernel a float32 one: a step of the dtype
# where they fall to either side, at sizes below 4; for float32, sums of 256 terms.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: str(d).removeprefix("torch."))


@dataclass(frozen=True)
class Case:
    """Arguments of one call; tails hold NaN where no row may look."""

    q: Tensor
    k: Tensor
    v: Tensor
    tail_k: Tensor
    tail_v: Tensor
    anc: Tensor
    rows: Tensor
    tail_len: Tensor
    o: Tensor
    lse2: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter(vars(self).values())

    def copy(self) -> "Case":
        return Case(*(x.clone() if x.is_contiguous() else x for x in self))


def draw(R: int, Hq: int, Hkv: int, D: int, T: int, dtype: torch.dtype, integers: torch.dtype) -> Case:
    """Rows at every level. They store in rows 5.., and their ancestors are rows 0 to 4."""
    g = torch.Generator().manual_seed(R * 1000 + Hq * 100 + D + T)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype).to(DEVICE)

    tail_len = torch.randint(0, T + 1, (R,), generator=g)
    tail_len[0] = T  # a last step, which stores nothing
    anc = torch.randint(0, 5, (R, T), generator=g)
    anc.masked_fill_(torch.arange(T) >= tail_len.unsqueeze(1), 10**6)  # entries that nobody may follow
    tails = [normal(T, R + 7, Hkv, D) for _ in range(2)]
    for tail in tails:
        tail[:, 5:] = torch.nan
    return Case(  # type: ignore[misc]
        normal(R, Hq, D),
        normal(R, Hkv, D),
        normal(R, Hkv, D),
        *tails,
        anc=anc.to(integers).to(DEVICE),
        rows=(5 + torch.randperm(R + 2, generator=g)[:R]).to(integers).to(DEVICE),
        tail_len=tail_len.to(integers).to(DEVICE),
        o=normal(R, Hq, D),
        lse2=torch.randn(R, Hq, generator=g).to(DEVICE) * 3,
    )


def run_and_compare(case: Case) -> Tensor:
    """The kernel's result, which is the reference's, as are both tails."""
    dtype, scale = case.q.dtype, case.q.shape[2] ** -0.5
    other = case.copy()
    wanted = Case(*(x.cpu() for x in case.copy()))
    want = reference.attend(*wanted, scale)  # type: ignore[call-arg]
    got = tail_attention_merge(*other, scale, "cuda")  # type: ignore[call-arg]
    assert got.dtype == dtype and got.data_ptr() == other.o.data_ptr()
    torch.testing.assert_close(got.cpu().double(), want.double(), rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(other.tail_k.cpu(), wanted.tail_k, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(other.tail_v.cpu(), wanted.tail_v, rtol=0, atol=0, equal_nan=True)
    return got


@by_pairs(
    {
        "Hq, Hkv, D": [(2, 2, 64), (4, 2, 128), (6, 2, 96), (10, 2, 64), (8, 1, 256), (1, 1, 96)],
        "T": [0, 1, 2, 3, 4],
        "dtype": list(TOLERANCE),
    }
)
def test_matches_the_definition(Hq: int, Hkv: int, D: int, T: int, dtype: torch.dtype) -> None:
    run_and_compare(draw(5, Hq, Hkv, D, T, dtype, torch.int64))


@pytest.mark.parametrize("R", [0, 1, 33], ids="R={}".format)
def test_any_number_of_rows(R: int) -> None:
    case = draw(max(R, 1), 4, 2, 64, 2, torch.float32, torch.int32)
    rows = ("q", "k", "v", "anc", "rows", "tail_len", "o", "lse2")
    run_and_compare(replace(case, **{name: getattr(case, name)[:R] for name in rows}))


def test_more_heads_than_one_program_takes() -> None:
    run_and_compare(draw(2, 40, 8, 128, 2, torch.bfloat16, torch.int32))


def test_the_most_tail_tokens() -> None:
    run_and_compare(draw(4, 6, 2, 96, 8, torch.bfloat16, torch.int64))


@DTYPES
def test_without_a_shared_part(dtype: torch.dtype) -> None:
    """Minus infinity, and what FlashInfer calls so; with no tail either, a row's own value is all."""
    case = draw(4, 6, 3, 64, 2, dtype, torch.int32)
    case.o[:2] = 0
    case.lse2[0], case.lse2[1] = -torch.inf, -5e4
    case.tail_len[:2] = 0
    got = run_and_compare(case)
    assert torch.equal(got[:2], case.v[:2].repeat_interleave(2, 1))


def test_a_shared_part_of_overwhelming_weight_is_all() -> None:
    case = draw(3, 4, 2, 64, 1, torch.float32, torch.int64)
    case.lse2[:] = 1e4
    torch.testing.assert_close(run_and_compare(case), case.o, rtol=0, atol=0)


def test_strided_views() -> None:
    """q, k, v as parts of one projection, the integers as columns of a packed table, tails of one layer."""
    R, Hq, Hkv, D, T = 6, 6, 2, 64, 2
    case = draw(R, Hq, Hkv, D, T, torch.float32, torch.int32)
    packed = torch.cat([case.q, case.k, case.v], 1)  # [R, Hq + 2 * Hkv, D]
    q, k, v = packed.split([Hq, Hkv, Hkv], 1)
    table = torch.cat([case.rows[:, None], case.tail_len[:, None], case.anc], 1)
    assert not (q.is_contiguous() or k.is_contiguous() or table[:, 2:].is_contiguous())
    run_and_compare(replace(case, q=q, k=k, v=v, rows=table[:, 0], tail_len=table[:, 1], anc=table[:, 2:]))
    heads_first = case.q.transpose(0, 1).contiguous().transpose(0, 1)
    same_level = torch.ones(1, dtype=torch.int32, device=DEVICE).expand(R)
    run_and_compare(replace(case, q=heads_first, tail_len=same_level, anc=case.anc.clamp(max=4)))


def test_padding_rows_change_nothing() -> None:
    """Rows of nobody: zeros, or what an earlier launch left, storing in rows of their own or not at all."""
    case = draw(7, 4, 2, 64, 2, torch.float32, torch.int64)
    case.rows[:] = torch.arange(5, 12, device=DEVICE)
    real = 4
    alone = run_and_compare(
        Case(*(x[:real] if name not in ("tail_k", "tail_v") else x for name, x in vars(case).items()))
    )
    case.tail_len[real:] = torch.tensor([0, 2, 9])
    case.anc[real:] = 0
    other = case.copy()
    got = tail_attention_merge(*other, 64**-0.5, "cuda")  # type: ignore[call-arg]
    torch.testing.assert_close(got[:real], alone, rtol=0, atol=0)
    assert got.isfinite().all()
    torch.testing.assert_close(other.tail_k[0, 9], case.k[4], rtol=0, atol=0)
    for unwritten in (other.tail_k[:, 10:], other.tail_v[:, 10:]):
        assert unwritten.isnan().all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"o": torch.zeros(2, 4, 8).transpose(0, 1)}, "contiguous"),
        ({"o": torch.zeros(4, 2, 8, dtype=torch.float16)}, "float32"),
        ({"lse2": torch.zeros(4, 2, dtype=torch.float64)}, "lse2"),
        ({"k": torch.zeros(4, 8, 2).transpose(1, 2)}, "dense"),
        ({"tail_k": torch.zeros(2, 6, 2, 16)[..., :8]}, "alike"),
        ({"tail_k": torch.zeros(9, 6, 2, 8), "tail_v": torch.zeros(9, 6, 2, 8)}, "at most 8"),
    ],
    ids=["o-strided", "o-dtype", "lse2-dtype", "k-strided", "tails-differ", "T=9"],
)
def test_refuses_what_it_does_not_read(wrong: dict[str, Tensor], says: str) -> None:
    right = {name: torch.zeros(4, 2, 8) for name in ("q", "k", "v", "o")}
    right |= {name: torch.zeros(2, 6, 2, 8) for name in ("tail_k", "tail_v")}
    right |= {name: torch.zeros(4, dtype=torch.int64) for name in ("rows", "tail_len")}
    right |= {"anc": torch.zeros(4, 2, dtype=torch.int64), "lse2": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=says):
        tail_attention_merge(**(right | wrong), scale=1.0, backend="cuda")
