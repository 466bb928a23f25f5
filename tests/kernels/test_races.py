"""Triton programs in any order: no foreign address, none that sees another's writes, no belief in scratch.

To add a kernel: write a function that launches it under `watched` and compares its result; name it in `RUNS`.
"""

import importlib.util
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from beam_batches import Ask, assert_equal, build_batch, random_filter, random_logits, random_trie

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
import cuda_batch
import triton
import triton.language as tl
import triton_gate
from flashinfer_stand_in import attend, install
from race_check import Fault, poison, watched

from xgr_kernels.attention.paged import AttentionSizes, Workspace
from xgr_kernels.attention.paged.own import OwnAttention
from xgr_kernels.attention.tail import cuda as tail
from xgr_kernels.attention.tail import reference as tail_reference
from xgr_kernels.beam_select import BeamBatch, cuda_kernels, reference
from xgr_kernels.beam_select.cuda import BeamState, Selector, Tuning
from xgr_kernels.row_ops import KvSlots
from xgr_kernels.row_ops import cuda as row_ops
from xgr_kernels.row_ops import reference as row_reference

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter: no GPU"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def tail_attention(seed: int) -> list[str]:
    """Two programs per row that share a KV head, a row that stores nothing, and views of one projection."""
    R, Hq, Hkv, D, T = 3, 6, 2, 16, 2
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(R, Hq + 2 * Hkv, D, generator=g)
    q, k, v = qkv.split([Hq, Hkv, Hkv], 1)
    tail_k, tail_v = (torch.randn(T, R + 2, Hkv, D, generator=g) for _ in range(2))
    beams = torch.tensor([[2, 0, 0, 7], [3, 1, 1, 7], [4, 2, 0, 1]], dtype=torch.int32)
    rows, tail_len, anc = beams[:, 0], beams[:, 1], beams[:, 2:]
    o, lse2 = torch.randn(R, Hq, D, generator=g), torch.randn(R, Hq, generator=g)
    arguments = [q, k, v, tail_k, tail_v, anc, rows, tail_len, o, lse2]
    wanted = [x.clone() for x in arguments]
    want = tail_reference.attend(*wanted, D**-0.5)  # type: ignore[call-arg]
    with pytest.MonkeyPatch.context() as patch, watched(seed) as launched:
        patch.setattr(tail, "TILE", 4 * D)
        got = tail.attend(*arguments, D**-0.5)  # type: ignore[call-arg]
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    torch.testing.assert_close(tail_k, wanted[3], rtol=0, atol=0)
    torch.testing.assert_close(tail_v, wanted[4], rtol=0, atol=0)
    return launched


def selection(seed: int) -> list[str]:
    """A step of four requests, each of several programs: filtered, legal, without beams, with a NaN."""
    rng = np.random.default_rng(seed)
    V, W, R = 40, 12, 5
    trie = random_trie(rng, 150, 2, V)
    leaves = random_filter(rng, trie.leaves, "bits+deny")
    asks = [Ask(trie, 1, W, R, leaves), Ask(trie, 0, W, mode="legal"), Ask(trie, 1, W, 0), Ask(trie, 1, W, 2)]
    batch = build_batch(rng, asks)
    logits = random_logits(rng, batch, V)
    logits[-2:, 7] = np.nan
    padded = torch.cat([logits, torch.full((1, V), torch.nan)])  # a row of nobody
    selector, now, next_, memory, out_begin = on_device(batch, padded, W)
    scratch = [
        x for name, x in vars(selector).items() if name.startswith("_") and isinstance(x, torch.Tensor)
    ]
    poison(seed, selector.children, selector.lse, next_.packed, *scratch)
    with watched(seed, *memory) as launched:
        selector.select(padded, now, next_, splits=2)
    got = cuda_batch.unpack(cuda_batch.Launched(selector, next_, out_begin, 1), batch)
    assert_equal(got, reference.select(logits, batch, lse=selector.lse[:-1].numpy()))
    np.testing.assert_allclose(got.score, reference.select(logits, batch).score, rtol=0, atol=8e-6)
    assert got.invalid.tolist() == [False, False, False, True]
    return launched


def on_device(
    batch: BeamBatch, logits: torch.Tensor, width: int
) -> tuple[Selector, BeamState, BeamState, list[torch.Tensor], np.ndarray]:
    """A small selector with the batch in its table, beams before and after, memory of tries and filters."""
    R, B = len(batch.scores), len(batch.width)
    selector = Selector(
        rows=R + 1, requests=B, vocab=logits.shape[1], max_width=width, tail_tokens=1, device="cpu",
        tuning=Tuning(block=16, tile=32, programs=2, maxima=16, capacity=64),
    )  # fmt: skip
    offsets = np.array(batch.row_offsets, np.int64)
    selector.owner[:R] = torch.from_numpy(np.repeat(np.arange(B, dtype=np.int32), np.diff(offsets)))
    now, next_ = BeamState(R + 1, 1, "cpu"), BeamState(B * width, 1, "cpu")
    for column, values in ((now.score, batch.scores), (now.lo, batch.lo), (now.hi, batch.hi)):
        column[:R] = torch.from_numpy(np.array(values))
    out_begin = np.arange(B + 1) * width
    tries, filters = cuda_batch.fill_table(selector, batch, offsets, out_begin)
    memory = [trie._memory[at : at + len(x)] for trie in tries.values() for at, x in trie.parts]
    return selector, now, next_, [*memory, *(filters.memory(slot) for slot in range(B))], out_begin


def rows(seed: int) -> list[str]:
    """What a layer does beside products and attention, with several programs a row and scattered pages."""
    N, Hq, Hkv, D, H = 3, 4, 2, 6, 33
    g = torch.Generator().manual_seed(seed)
    x, delta, weight, qkv, angle, gate_up = (
        torch.randn(*shape, generator=g)
        for shape in ((N, H), (N, H), (H,), (N, (Hq + 2 * Hkv) * D), (N, D // 2), (N, 2 * H))
    )
    cos, sin, norms = angle.cos(), angle.sin(), (weight[:D].clone(), weight[D : 2 * D].clone())
    slots = torch.tensor([4, 0, 3])
    pages = torch.full((2, 5, Hkv, D), torch.nan)
    stored = KvSlots(pages[0], pages[1], slots)
    total = x.clone()
    want = row_reference.residual_norm(total, delta, weight, 1e-6)
    rotated = row_reference.norm_and_rotate(qkv.clone(), (Hq, Hkv), cos, sin, norms, 1e-6)
    with pytest.MonkeyPatch.context() as patch, watched(seed) as launched:
        patch.setattr(row_ops, "TILE", 16)
        normed = row_ops.residual_norm(x, delta, weight, 1e-6)
        q, k, v = row_ops.norm_and_rotate(qkv, (Hq, Hkv), cos, sin, norms, 1e-6)
        row_ops.norm_and_rotate(qkv, (Hq, Hkv), cos, sin, norms, 1e-6, stored)
        gated = row_ops.gated_silu(gate_up)
    kept = (stored.k[slots], stored.v[slots])
    for got, wanted in zip(
        (normed, x, q, k, v, *kept, gated),
        (want, total, *rotated, *rotated[1:], row_reference.gated_silu(gate_up)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=4e-6, atol=4e-6)
    return launched


def paged_attention(seed: int) -> list[str]:
    """Two requests over pages that lie apart, more rows than a tile has, and rows of nobody."""
    sizes = AttentionSizes(4, 2, 24, 4, torch.float32, torch.device("cpu"), 24**-0.5)
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(40, 4, 24, generator=g)
    k, v = torch.randn(2, 6, 4, 2, 24, generator=g)
    offsets, pages, lengths = [0, 33, 37], [np.array([3, 1, 4], np.int32), np.array([2], np.int32)], [9, 3]
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        workspace = Workspace(sizes, rows=40, requests=2, page_entries=4)
        attention = OwnAttention(
            sizes, workspace, rows=40, requests=2, page_entries=4, causal=False, algorithm="own"
        )
        attention.plan(offsets, pages, lengths)
        with watched(seed) as launched:
            o, _ = attention.attend(q, k, v, sizes.scale)
    for b, length in enumerate(lengths):
        mine = slice(offsets[b], offsets[b + 1])
        keys, values = (x[torch.from_numpy(pages[b]).long()].flatten(0, 1)[:length] for x in (k, v))
        want, _ = attend(q[mine], keys, values, sizes.scale, False)
        torch.testing.assert_close(o[mine].double(), want, rtol=0, atol=2e-6)
    return launched


RUNS: list[Callable[[int], list[str]]] = [tail_attention, selection, rows, paged_attention]


@cache
def launched_by(run: Callable[[int], list[str]], seed: int) -> frozenset[str]:
    return frozenset(run(seed))


@pytest.mark.parametrize("seed", [0, 1], ids="seed={}".format)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_programs_in_any_order(run: Callable[[int], list[str]], seed: int) -> None:
    assert launched_by(run, seed)


def test_no_kernel_is_missing() -> None:
    names = {name.split(":")[1] for name in triton_gate.kernels_in_package()}
    kernels = {name for name in names if not name.startswith("_")}  # others are called by these
    watched_ones = frozenset().union(*(launched_by(run, 0) for run in RUNS))
    assert kernels <= watched_ones, f"add to RUNS: {sorted(kernels - watched_ones)}"


# ---- mistakes planted in our kernels -----------------------------------------------------------------------

# Behind a tensor lies nothing, or by chance another one: then the result is wrong, or programs meet there.
FOREIGN = "no element|not close|Not equal|by (program|several)"


def mutant(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The module with one piece of its source replaced; Triton reads kernels from a file."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, old
    path = folder / "mutant.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "live = (i_head < Hq)[:, None] & (i_dim < D)",
            "live = (i_head >= 0)[:, None] & (i_dim < D)",
            FOREIGN,
        ),
        (
            "i_row * q_row + i_head[:, None] * q_head",
            "i_row * q_head + i_head[:, None] * q_row",
            FOREIGN,
        ),
        (
            "(i_head % GROUP == 0)[:, None]",
            "(i_head >= 0)[:, None]",
            "write of p_tail_k .*: write by program",
        ),
        ("held = t < tail_len", "held = t <= tail_len", FOREIGN),
    ],
    ids=["missing-mask", "swapped-strides", "two-writers", "reads-what-is-written"],
)
def test_mistakes_in_tail_attention_are_caught(
    old: str, new: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mutant(tail, old, new, tmp_path)
    monkeypatch.setattr(tail, "tail_attention_kernel", made.tail_attention_kernel)
    with pytest.raises(AssertionError, match=says):
        tail_attention(0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("mask=at + lane < V, ", "mask=at + lane >= 0, ", FOREIGN),
        ("(request * programs + program) * BLOCKS", "(request + program) * BLOCKS", "write of p_maxima"),
        (
            'tl.atomic_add(p_stored + request, count, sem="relaxed")',
            "tl.load(p_stored + request)",
            "write of p_keys",
        ),
        (
            "seen))\n    tl.store(p_threshold + request, NO_KEY)\n    tl.store(p_stored + request, 0)",
            "seen))",
            FOREIGN,
        ),
        (
            'tl.atomic_or(p_invalid + request, 1, sem="relaxed")',
            "tl.store(p_invalid + request, 1)",
            "p_invalid",
        ),
    ],
    ids=["missing-mask", "wrong-stride", "lost-update", "believes-scratch", "same-value-twice"],
)
def test_mistakes_in_selection_are_caught(
    old: str, new: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgr_kernels.beam_select.cuda.kernels", mutant(cuda_kernels, old, new, tmp_path))
    with pytest.raises(AssertionError, match=says):
        selection(0)


# ---- the checker itself ------------------------------------------------------------------------------------


@triton.jit
def shift(
    p_x: tl.tensor, p_out: tl.tensor, n: int, step: int, BLOCK: tl.constexpr, MASKED: tl.constexpr
) -> None:
    """out[i] = x[i + step]"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(p_out + i, tl.load(p_x + i + step, mask=i + step < n), mask=i < n)
    else:
        tl.store(p_out + i, tl.load(p_x + i + step))


@triton.jit
def count(p_x: tl.tensor, p_count: tl.tensor, SEEN: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Adds to one counter from all programs, and writes it to x if SEEN."""
    before = tl.atomic_add(p_count, 1)
    if SEEN:
        before = tl.load(p_count)
    tl.store(p_x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), before)


@triton.jit
def scatter(p_x: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Two lanes for each element."""
    i = tl.arange(0, BLOCK)
    tl.store(p_x + i // 2, i)


def run_shift(n: int, step: int, masked: bool, in_place: bool) -> torch.Tensor:
    x = torch.arange(n, dtype=torch.float32)
    out = x if in_place else torch.empty_like(x)
    with watched(0):
        shift[(triton.cdiv(n, 4),)](x, out, n, step, BLOCK=4, MASKED=masked)
    return out


def test_what_is_right_passes() -> None:
    assert run_shift(8, 0, masked=False, in_place=True).tolist() == list(range(8))
    assert run_shift(7, 0, masked=True, in_place=False).tolist() == list(range(7))
    x, counter = torch.zeros(12, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with watched(0) as launched:
        count[(3,)](x, counter, SEEN=False, BLOCK=4)
    assert launched == ["count"] and counter.tolist() == [3]
    assert x[::4].tolist() != [0, 1, 2], "programs run in random order"
    assert sorted(x[::4].tolist()) == [0, 1, 2]


def test_mistakes_are_caught() -> None:
    with pytest.raises(Fault, match=r"shift, program \(1, 0, 0\): access to p_\w+ byte 28"):
        run_shift(7, 0, masked=False, in_place=False)
    with pytest.raises(Fault, match=r"write of p_x byte 16 .*: read by program 0 of the launch"):
        run_shift(8, 1, masked=True, in_place=True)
    assert run_shift(8, 1, masked=True, in_place=False)[7].isnan(), "masked without an `other` is garbage"
    x = torch.zeros(12, dtype=torch.int32)
    with watched(0), pytest.raises(Fault, match=r"atomic of p_count byte 0 .*: read by program 2"):
        count[(3,)](x, torch.zeros(1, dtype=torch.int32), SEEN=True, BLOCK=4)
    with watched(0), pytest.raises(Fault, match="lanes of one store"):
        scatter[(1,)](x, BLOCK=8)
    every_other = torch.zeros(16, dtype=torch.int32)[::2]
    with watched(0), pytest.raises(Fault, match=r"byte 4 .* no element"):
        count[(1,)](every_other, x, SEEN=False, BLOCK=4)
