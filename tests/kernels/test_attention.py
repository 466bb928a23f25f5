"""Shared, tail and causal attention against float64 attention over the concatenated keys and values."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pairs import by_pairs
from torch import Tensor

from xgr_kernels.attention.causal import causal_attention
from xgr_kernels.attention.shared import SharedPlan, shared_attention
from xgr_kernels.attention.tail import tail_attention_merge
from xgr_kernels.backend import choose_backend

# float32 sums of a few hundred terms of size 1; bfloat16 keeps 8 bits of q, k, v, probabilities and o
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
PAGE = 16


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float64 attention. q [W, Hq, D], k, v [L, Hkv, D], seen [W, L] -> o [W, Hq, D], lse2 [W, Hq]."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("whd,lhd->whl", q.double(), k) * scale
    if seen is not None:
        scores.masked_fill_(~seen.unsqueeze(1), -np.inf)
    return torch.einsum("whl,lhd->whd", scores.softmax(-1), v), scores.logsumexp(-1) / np.log(2)


def make_plan(rng: np.random.Generator, widths: list[int], lengths: list[int], scattered: bool) -> SharedPlan:
    counts = [-(-length // PAGE) for length in lengths]
    order = rng.permutation(sum(counts)) if scattered else np.arange(sum(counts))
    pages = np.split(order.astype(np.int32), np.cumsum(counts)[:-1])
    return SharedPlan(np.cumsum([0, *widths]).tolist(), pages, lengths, PAGE)


def prompt(pool: Tensor, plan: SharedPlan, request: int) -> Tensor:
    """[L, Hkv, D] of one request, gathered by hand."""
    return torch.cat([pool[int(p)] for p in plan.pages[request]] or [pool[0, :0]])[: plan.lengths[request]]


@DTYPES
@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
@pytest.mark.parametrize(("Hq", "Hkv", "D"), [(2, 2, 8), (6, 3, 32), (6, 2, 16), (8, 1, 64)], ids=str)
def test_shared_attention(Hq: int, Hkv: int, D: int, scattered: bool, dtype: torch.dtype) -> None:
    rng, g = np.random.default_rng(Hq), torch.Generator().manual_seed(Hq)
    plan = make_plan(rng, [1, 7, 33, 5], [1, 100, 257, 16], scattered)
    k, v = (draw(g, 40, PAGE, Hkv, D, dtype=dtype) for _ in range(2))
    q = draw(g, 46, Hq, D, dtype=dtype)
    wanted = [
        exact(q[first:last], prompt(k, plan, b), prompt(v, plan, b), D**-0.5)
        for b, (first, last) in enumerate(pairwise(plan.row_offsets))
    ]
    want, want_lse = (torch.cat(parts) for parts in zip(*wanted, strict=True))
    for backend in ("cpu", "reference"):
        o, lse2 = shared_attention(q, k, v, plan, D**-0.5, backend)
        assert o.dtype == dtype
        assert lse2.dtype == torch.float32
        torch.testing.assert_close(o.double(), want, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(lse2.double(), want_lse, rtol=0, atol=TOLERANCE[dtype])


@BACKENDS
def test_empty_prompt_gives_nothing(backend: str) -> None:
    plan = SharedPlan(
        [0, 3, 3, 5],
        [np.empty(0, np.int32), np.array([1], np.int32), np.array([0], np.int32)],
        [0, 4, 5],
        PAGE,
    )
    pool = torch.randn(2, PAGE, 2, 8)
    o, lse2 = shared_attention(torch.randn(5, 4, 8), pool, pool, plan, 1.0, backend)
    assert (o[:3] == 0).all()
    assert (lse2[:3] == -np.inf).all()
    assert lse2[3:].isfinite().all()


def test_batch_mates_change_nothing() -> None:
    rng, g = np.random.default_rng(1), torch.Generator().manual_seed(1)
    plan = make_plan(rng, [9, 20], [300, 77], scattered=True)
    k, v, q = draw(g, 30, PAGE, 2, 32), draw(g, 30, PAGE, 2, 32), draw(g, 29, 6, 32)
    together, _ = shared_attention(q, k, v, plan, 0.2)
    for b in range(2):
        rows = slice(plan.row_offsets[b], plan.row_offsets[b + 1])
        alone = SharedPlan([0, rows.stop - rows.start], [plan.pages[b]], [plan.lengths[b]], PAGE)
        o, _ = shared_attention(q[rows], k, v, alone, 0.2)
        torch.testing.assert_close(o, together[rows], rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.in_turns("Hq")
@by_pairs(
    {
        "Hq, Hkv, D": [(2, 2, 8), (6, 3, 32), (6, 2, 16), (8, 1, 64)],
        "T": [0, 1, 2, 5],
        "L": [0, 50],
        "dtype": [torch.float32, torch.bfloat16],
    }
)
def test_shared_then_tail(Hq: int, Hkv: int, D: int, T: int, L: int, dtype: torch.dtype) -> None:
    """Rows at every level in one call equal float64 attention over prompt, tail tokens and the newest."""
    rng, g = np.random.default_rng(T), torch.Generator().manual_seed(T)
    R, held, scale = 33, 60, D**-0.5
    plan = make_plan(rng, [R], [L], scattered=False)
    pool_k, pool_v = (draw(g, 4, PAGE, Hkv, D, dtype=dtype) for _ in range(2))
    q = draw(g, R, Hq, D, dtype=dtype)
    k, v = (draw(g, R, Hkv, D, dtype=dtype) for _ in range(2))
    tail_len = torch.from_numpy(rng.integers(0, T + 1, R))
    anc = torch.from_numpy(rng.integers(0, 20, (R, T)))
    rows = torch.from_numpy(20 + rng.permutation(held - 20)[:R])
    tail_k, tail_v = (draw(g, T, held, Hkv, D, dtype=dtype) for _ in range(2))
    for tail in (tail_k, tail_v):
        tail[:, 20:] = torch.nan  # memory that nobody has written yet
    anc.masked_fill_(torch.arange(T) >= tail_len.unsqueeze(1), 10**12)  # and entries that nobody may follow
    seen = torch.cat([torch.ones(R, L), torch.zeros(R, 20 * T), torch.eye(R)], 1).bool()
    after_k, after_v = tail_k.clone(), tail_v.clone()
    for r, steps in enumerate(tail_len.tolist()):
        seen[r, [L + 20 * t + int(anc[r, t]) for t in range(steps)]] = True
        if steps < T:
            after_k[steps, rows[r]], after_v[steps, rows[r]] = k[r], v[r]
    keys = torch.cat([prompt(pool_k, plan, 0), tail_k[:, :20].flatten(0, 1), k])
    values = torch.cat([prompt(pool_v, plan, 0), tail_v[:, :20].flatten(0, 1), v])
    want, _ = exact(q, keys, values, scale, seen)

    for backend in ("cpu", "reference"):
        kept_k, kept_v = tail_k.clone(), tail_v.clone()
        o, lse2 = shared_attention(q, pool_k, pool_v, plan, scale, backend)
        got = tail_attention_merge(q, k, v, kept_k, kept_v, anc, rows, tail_len, o, lse2, scale, backend)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype])
        torch.testing.assert_close(kept_k, after_k, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(kept_v, after_v, rtol=0, atol=0, equal_nan=True)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("T", [0, 2])
def test_one_row_over_no_key_gives_its_own_value(T: int, dtype: torch.dtype, backend: str) -> None:
    """A prompt of one token, run between rows that have keys: its softmax has one entry."""
    g = torch.Generator().manual_seed(T)
    plan = make_plan(np.random.default_rng(T), [2, 1, 3], [20, 0, 5], scattered=True)
    pool = draw(g, 3, PAGE, 2, 8, dtype=dtype)
    q, k, v = draw(g, 6, 4, 8, dtype=dtype), draw(g, 6, 2, 8, dtype=dtype), draw(g, 6, 2, 8, dtype=dtype)
    tail = torch.full((T, 6, 2, 8), torch.nan, dtype=dtype)
    anc, rows, tail_len = torch.zeros(6, T, dtype=torch.int64), torch.arange(6), torch.zeros(6).long()
    o, lse2 = shared_attention(q, pool, pool, plan, 0.3, backend)
    got = tail_attention_merge(q, k, v, tail, tail.clone(), anc, rows, tail_len, o, lse2, 0.3, backend)
    assert lse2[2].tolist() == [-np.inf] * 4 and got.isfinite().all()
    torch.testing.assert_close(got[2], v[2].repeat_interleave(2, 0), rtol=0, atol=0)


@pytest.mark.in_turns("Hq")
@by_pairs(
    {
        "Hq, Hkv, D": [(2, 2, 5), (6, 3, 32), (6, 2, 12), (8, 1, 64)],
        "prefixes": [[0, 0, 0, 0], [0, 7, 100, 1], [16, 33, 5, 64]],
        "scattered": [False, True],
        "dtype": [torch.float32, torch.bfloat16],
    }
)
def test_causal_attention_over_a_prefix(
    Hq: int, Hkv: int, D: int, prefixes: list[int], scattered: bool, dtype: torch.dtype
) -> None:
    """Packed new tokens of several prompts, one of them without any, behind prefixes of other lengths."""
    rng, g, counts = np.random.default_rng(D), torch.Generator().manual_seed(D), [1, 45, 0, 17]
    plan = make_plan(rng, counts, prefixes, scattered)
    pool_k, pool_v = (draw(g, 16, PAGE, Hkv, D, dtype=dtype) for _ in range(2))
    q = draw(g, Hq, sum(counts), D, dtype=dtype).transpose(0, 1)  # strided, as models give it
    k, v = (draw(g, sum(counts), Hkv, D, dtype=dtype) for _ in range(2))
    wanted = []
    for b, (first, last) in enumerate(pairwise(plan.row_offsets)):
        rows = slice(first, last)
        keys = torch.cat([prompt(pool_k, plan, b), k[rows]])
        values = torch.cat([prompt(pool_v, plan, b), v[rows]])
        seen = torch.ones(last - first, len(keys), dtype=torch.bool).tril(prefixes[b])
        wanted.append(exact(q[rows], keys, values, D**-0.5, seen)[0])

    for backend in ("cpu", "reference"):
        before = shared_attention(q, pool_k, pool_v, plan, D**-0.5, backend) if any(prefixes) else None
        got = causal_attention(q, k, v, plan.row_offsets, D**-0.5, before, backend)
        assert got.dtype == dtype and got.shape == q.shape
        torch.testing.assert_close(got.double(), torch.cat(wanted), rtol=0, atol=TOLERANCE[dtype])


@by_pairs(
    {
        "Hq, Hkv, D": [(3, 1, 32), (6, 2, 33), (4, 2, 128)],
        "R": [1, 2, 3, 10, 11, 12, 86, 87],
        "L": [1, 7, 127, 128, 129, 1031],
        "dtype": [torch.float32, torch.bfloat16],
    }
)
def test_shared_attention_at_the_borders_of_blocks(
    Hq: int, Hkv: int, D: int, R: int, L: int, dtype: torch.dtype
) -> None:
    """Rows about a block and a gang of blocks, keys about a block of keys."""
    g = torch.Generator().manual_seed(R * L)
    plan = make_plan(np.random.default_rng(0), [R], [L], scattered=False)
    k, v = (draw(g, -(-L // PAGE), PAGE, Hkv, D, dtype=dtype) for _ in range(2))
    q = draw(g, R, Hq, D, dtype=dtype)
    o, lse2 = shared_attention(q, k, v, plan, D**-0.5)
    want, want_lse = exact(q, prompt(k, plan, 0), prompt(v, plan, 0), D**-0.5)
    torch.testing.assert_close(o.double(), want, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse2.double(), want_lse, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("L", [1, 2, 42, 43, 44, 128, 129, 600], ids="L={}".format)
@pytest.mark.parametrize(("Hq", "Hkv", "D"), [(3, 1, 32), (4, 4, 8), (16, 8, 128)], ids=str)
def test_causal_attention_at_the_borders_of_blocks(Hq: int, Hkv: int, D: int, L: int) -> None:
    g = torch.Generator().manual_seed(L)
    q, k, v = draw(g, L, Hq, D), draw(g, L, Hkv, D), draw(g, L, Hkv, D)
    want, _ = exact(q, k, v, D**-0.5, torch.ones(L, L, dtype=torch.bool).tril())
    got = causal_attention(q, k, v, [0, L], D**-0.5)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("R", [3, 40], ids="R={}".format)
def test_a_row_that_is_no_number_spoils_no_other(R: int, bad: float) -> None:
    """The last row, which spare lanes of a block repeat, and one among others; both stay visibly spoilt."""
    g = torch.Generator().manual_seed(R)
    plan = make_plan(np.random.default_rng(0), [R], [300], scattered=False)
    pool_k, pool_v = draw(g, 19, PAGE, 2, 32), draw(g, 19, PAGE, 2, 32)
    q, k, v = draw(g, R, 6, 32), draw(g, R, 2, 32), draw(g, R, 2, 32)
    spoilt = q.clone()
    spoilt[[1, -1]] = bad
    before = shared_attention(q, pool_k, pool_v, plan, 0.2)
    after = shared_attention(spoilt, pool_k, pool_v, plan, 0.2)
    good = [r for r in range(R) if r not in (1, R - 1)]
    for want, got in (
        (before[0], after[0]),
        (before[1], after[1]),
        (causal_attention(q, k, v, [0, R], 0.2, before), causal_attention(spoilt, k, v, [0, R], 0.2, after)),
    ):
        torch.testing.assert_close(got[good], want[good], rtol=0, atol=0)
    assert after[0][[1, -1]].isnan().all()


def test_spoilt_keys_stay_with_their_request() -> None:
    """One request after another, on memory that the kernel uses again."""
    g = torch.Generator().manual_seed(0)
    plan = make_plan(np.random.default_rng(0), [20, 20], [130, 130], scattered=False)
    k, v, q = draw(g, 18, PAGE, 1, 32), draw(g, 18, PAGE, 1, 32), draw(g, 40, 2, 32)
    want, _ = shared_attention(q, k, v, plan, 0.2)
    k[plan.pages[0][0]] = v[plan.pages[0][0]] = torch.nan
    got, _ = shared_attention(q, k, v, plan, 0.2)
    assert got[:20].isnan().all()
    torch.testing.assert_close(got[20:], want[20:], rtol=0, atol=0)


@BACKENDS
def test_a_prefix_of_overwhelming_weight_stays_finite(backend: str) -> None:
    q, zeros = torch.full((3, 2, 8), 30.0), torch.zeros(3, 2, 8)
    prefix = torch.ones(3, 2, 8), torch.full((3, 2), 1e5)
    got = causal_attention(q, q, zeros, [0, 3], 1.0, prefix, backend)
    torch.testing.assert_close(got, torch.ones(3, 2, 8), rtol=0, atol=0)
    prefix = torch.ones(3, 2, 8), torch.full((3, 2), -1e5)
    assert (causal_attention(q, q, zeros, [0, 3], 1.0, prefix, backend) == 0).all()


def test_reference_keeps_float64() -> None:
    g = torch.Generator().manual_seed(0)
    q, pool = (
        torch.randn(3, 2, 8, generator=g, dtype=torch.float64),
        torch.randn(1, PAGE, 2, 8, dtype=torch.float64),
    )
    plan = SharedPlan([0, 3], [np.array([0], np.int32)], [9], PAGE)
    o, lse2 = shared_attention(q, pool, pool, plan, 0.3, "reference")
    want, want_lse = exact(q, pool[0, :9], pool[0, :9], 0.3)
    torch.testing.assert_close(o, want, rtol=0, atol=1e-14)
    torch.testing.assert_close(lse2, want_lse, rtol=0, atol=1e-14)


def test_backends_are_chosen_by_name() -> None:
    assert choose_backend("auto", "cpu")[0] == "cpu"
    assert choose_backend("reference", "cpu")[0] == "reference"
    with pytest.raises(ValueError, match="fast"):
        choose_backend("fast", "cpu")
    empty = torch.empty(0, 1, 1)
    with pytest.raises(ValueError, match="gpu"):
        shared_attention(empty, empty, empty, SharedPlan([0], [], [], PAGE), 1.0, "gpu")
    with pytest.raises(ValueError, match="gpu"):
        causal_attention(empty, empty, empty, [0], 1.0, backend="gpu")
    with pytest.raises(ValueError, match="gpu"):
        tail_attention_merge(empty, empty, empty, empty, empty, empty, empty, empty, empty, empty, 1.0, "gpu")
