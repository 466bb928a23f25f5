"""Paged attention: plans, staging and buffers, with a stand-in for FlashInfer that keeps its contract."""

import ast
import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path

import flashinfer_stand_in
import numpy as np
import pytest
import torch
from flashinfer_stand_in import MINUS_INFINITY, Stream, attend, install
from torch import Tensor

from xgr_kernels.attention.causal import causal_attention
from xgr_kernels.attention.paged import (
    AttentionSizes,
    PagedAttention,
    Workspace,
    choose_algorithm,
    quickest,
    safest_algorithm,
    useful_algorithms,
)
from xgr_kernels.attention.paged import cuda as paged
from xgr_kernels.attention.paged import rules as paged_rules
from xgr_kernels.attention.paged.rules import Processor
from xgr_kernels.attention.shared import SharedPlan, shared_attention
from xgr_kernels.backend import choose_backend

PAGE, Hq, Hkv, D = 16, 4, 2, 64
HOST = torch.device("cpu")
SIZES = AttentionSizes(Hq, Hkv, D, PAGE, torch.bfloat16, HOST, D**-0.5)
ROUNDED = 2**-7  # half a step of bfloat16 below 4, from the stand-in's float64


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    return install(monkeypatch)


class Pool:
    """Pages of random keys and values, dealt out in random order."""

    def __init__(self, pages: int = 64) -> None:
        g = torch.Generator().manual_seed(0)
        self.k, self.v = (torch.randn(pages, PAGE, Hkv, D, generator=g).bfloat16() for _ in range(2))
        self.q = torch.randn(256, Hq, D, generator=g).bfloat16()
        self._free = np.random.default_rng(0).permutation(pages).astype(np.int32)

    def take(self, length: int) -> np.ndarray:
        """Pages of a request of that many tokens."""
        count = -(-length // PAGE)
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def exact(
        self, rows: slice, pages: np.ndarray, length: int, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        keys, values = (x[torch.from_numpy(pages).long()].flatten(0, 1)[:length] for x in (self.k, self.v))
        return attend(self.q[rows], keys, values, SIZES.scale, causal)


def make(
    rows: int = 32, requests: int = 4, page_entries: int = 40, depth: int = 16, causal: bool = False,
    algorithm: str = "fa2", sizes: AttentionSizes = SIZES,
) -> PagedAttention:  # fmt: skip
    workspace = Workspace(sizes, rows=rows, requests=requests, page_entries=page_entries, depth=depth)
    return PagedAttention(
        sizes, workspace, rows=rows, requests=requests, page_entries=page_entries, causal=causal,
        algorithm=algorithm,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["fa2", "fa3"])
@pytest.mark.parametrize(
    ("widths", "lengths"),
    [
        ([32], [100]),
        ([1], [1]),
        ([7, 9, 16], [16, 100, 33]),
        ([3, 0, 5], [20, 17, 0]),
        ([2, 2, 2, 2], [15, 16, 17, 128]),
        ([], []),
    ],
    ids=str,
)
def test_shared_attention_of_a_cohort(
    stream: Stream, widths: list[int], lengths: list[int], algorithm: str
) -> None:
    """Fewer requests than slots, fewer rows than the bucket, empty prompts, full and broken last pages."""
    pool, attention = Pool(), make(algorithm=algorithm)
    pages = [pool.take(length) for length in lengths]
    offsets = np.cumsum([0, *widths]).tolist()
    attention.plan(offsets, pages, lengths)
    o, lse2 = shared_attention(pool.q[:32], pool.k, pool.v, attention, SIZES.scale, "cuda")
    assert o.shape == (32, Hq, D) and o.is_contiguous() and lse2.dtype == torch.float32
    for b, length in enumerate(lengths):
        rows = slice(offsets[b], offsets[b + 1])
        want, want_lse = pool.exact(rows, pages[b], length)
        torch.testing.assert_close(o[rows].double(), want, rtol=0, atol=ROUNDED)
        torch.testing.assert_close(lse2[rows].double(), want_lse, rtol=0, atol=1e-5)
        if length == 0:
            assert (o[rows] == 0).all() and (lse2[rows] == MINUS_INFINITY).all()
    assert (o[offsets[-1] :] == 0).all() and (lse2[offsets[-1] :] == 0).all()


@pytest.mark.parametrize("prefix", [0, 5, 32])
def test_prefill_behind_a_prefix_is_one_call(stream: Stream, prefix: int) -> None:
    """The last rows of a request are its last tokens; a page may hold more than what is there yet."""
    pool, attention, counts = Pool(), make(causal=True), [20, 1, 9]
    lengths = [prefix + count for count in counts]
    pages = [pool.take(length + 30) for length in lengths]
    offsets = np.cumsum([0, *counts]).tolist()
    attention.plan(offsets, pages, lengths)
    o, _ = attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)
    for b, length in enumerate(lengths):
        rows = slice(offsets[b], offsets[b + 1])
        want, _ = pool.exact(rows, pages[b], length, causal=True)
        torch.testing.assert_close(o[rows].double(), want, rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("depth", [1, 2, 16], ids="depth={}".format)
def test_plans_of_queued_launches_do_not_mix(stream: Stream, depth: int) -> None:
    """Ten cohorts are planned and launched on two buckets while the device is busy with something else."""
    pool = Pool(400)
    workspace = Workspace(SIZES, rows=32, requests=4, page_entries=40, depth=depth)
    buckets = [
        PagedAttention(
            SIZES, workspace, rows=rows, requests=requests, page_entries=30, causal=False, algorithm="fa2"
        )
        for rows, requests in [(16, 2), (32, 4)]
    ]
    results: list[tuple[Tensor, Tensor]] = []
    asked = []
    with stream.held():
        for i in range(10):
            bucket = buckets[i % 2]
            lengths = [17 * (i + 1), 5 + i]
            pages = [pool.take(length) for length in lengths]
            asked.append((i + 1, pages, lengths))
            bucket.plan([0, i + 1, i + 3], pages, lengths)
            out = bucket.attend(pool.q[: bucket.rows], pool.k, pool.v, SIZES.scale)
            stream.launch(lambda out=out: results.append((out[0].clone(), out[1].clone())))  # type: ignore[misc]
        assert bool(results) == (depth < 10), "the ring waits for the device only if it must"
    for (o, lse2), (split, pages, lengths) in zip(results, asked, strict=True):
        for b, rows in enumerate([slice(0, split), slice(split, split + 2)]):
            want, want_lse = pool.exact(rows, pages[b], lengths[b])
            torch.testing.assert_close(o[rows].double(), want, rtol=0, atol=ROUNDED)
            torch.testing.assert_close(lse2[rows].double(), want_lse, rtol=0, atol=1e-5)


def test_rows_of_nobody_are_left_alone(stream: Stream) -> None:
    pool, attention = Pool(), make()
    attention.plan([0, 32], [pool.take(40)], [40])
    before = attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)[0].clone()
    attention.plan([0, 3], [pool.take(10)], [10])
    o, lse2 = attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)
    torch.testing.assert_close(o[3:], before[3:], rtol=0, atol=0)
    assert lse2.isfinite().all() and not torch.equal(o[:3], before[:3])


def test_queries_may_be_part_of_a_projection(stream: Stream) -> None:
    pool, attention, pages = Pool(), make(rows=8), np.array([3], np.int32)
    attention.plan([0, 8], [pages], [9])
    q = torch.cat([pool.q[:8], pool.q[8:16]], 1)[:, :Hq]
    assert not q.is_contiguous()
    o, _ = attention.attend(q, pool.k, pool.v, SIZES.scale)
    torch.testing.assert_close(o.double(), pool.exact(slice(0, 8), pages, 9)[0], rtol=0, atol=ROUNDED)


def test_a_capture_needs_all_rows(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph bakes the number of rows in: those of a small cohort would be all that it ever computes."""
    pool, attention = Pool(), make()
    monkeypatch.setattr(paged, "capturing", lambda device: True)
    attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)  # as constructed
    attention.plan([0, 31], [np.array([3], np.int32)], [9])
    with pytest.raises(ValueError, match="31 of 32 rows"):
        attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)
    attention.plan_maximum()
    attention.attend(pool.q[:32], pool.k, pool.v, SIZES.scale)


def test_a_layout_that_moves_is_noticed(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = make()
    wrapper = sys.modules["flashinfer"].BatchPrefillWithPagedKVCacheWrapper
    monkeypatch.setattr(wrapper, "_lay_out", lambda self: [1, 2, 3])
    with pytest.raises(RuntimeError, match="graphs are void"):
        attention.plan([0, 1], [np.array([3], np.int32)], [9])


ONE_PAGE = np.array([3], np.int32)


@pytest.mark.parametrize(
    ("offsets", "pages", "lengths", "says"),
    [
        ([0, 33], [ONE_PAGE], [9], "at most 32"),
        ([1, 3], [ONE_PAGE], [9], "ascend from 0"),
        ([0, 3, 2], [ONE_PAGE, ONE_PAGE], [9, 9], "ascend from 0"),
        ([0, 3], [ONE_PAGE], [17], "hold"),
        ([0, 3], [ONE_PAGE], [-1], "hold"),
        ([0, 3], [np.zeros(50, np.int32)], [700], "44 pages, planned for at most 40"),
        ([0, 3], [ONE_PAGE, ONE_PAGE], [9, 9], "as many of each"),
        ([0, 1, 2, 3, 4, 5], [ONE_PAGE] * 5, [9] * 5, "at most 4"),
    ],
    ids=["rows", "begin", "descend", "length", "negative", "pages", "counts", "requests"],
)
def test_refuses_plans_that_do_not_fit(
    stream: Stream, offsets: list[int], pages: list[np.ndarray], lengths: list[int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make().plan(offsets, pages, lengths)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"head_dim": 320}, "head_dim is 320: .* kernel of our own, which takes 128 at most"),
        ({"dtype": torch.float64}, "float64: .* serves bfloat16, float16 and float32"),
        ({"q_heads": 5}, "q_heads is 5, not a multiple"),
        ({"q_heads": 130, "head_dim": 96}, "65 query heads per KV head: .* head size 96 in bfloat16"),
    ],
    ids=["D=320", "float64", "heads", "group"],
)
def test_refuses_models_by_name(stream: Stream, changed: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(sizes=AttentionSizes(**(vars(SIZES) | changed)))  # type: ignore[arg-type]


def test_refuses_other_sizes_than_the_workspace_has(stream: Stream) -> None:
    workspace = Workspace(SIZES, rows=8, requests=2, page_entries=4)
    right = {"rows": 8, "requests": 2, "page_entries": 4}
    for name, value in [("rows", 9), ("requests", 3), ("page_entries", 5), ("rows", 0)]:
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            PagedAttention(SIZES, workspace, **(right | {name: value}), causal=False, algorithm="fa2")
    with pytest.raises(ValueError, match="'fa4' for these sizes: use fa2 or fa3"):
        PagedAttention(SIZES, workspace, **right, causal=False, algorithm="fa4")
    attention = PagedAttention(SIZES, workspace, **right, causal=False, algorithm="fa2")
    pool = Pool()
    with pytest.raises(ValueError, match="planned for 8"):
        attention.attend(pool.q[:7], pool.k, pool.v, SIZES.scale)
    with pytest.raises(ValueError, match="scale"):
        attention.attend(pool.q[:8], pool.k, pool.v, 1.0)
    for q, k, v, says in [
        (pool.q[:8].float(), pool.k, pool.v, r"^q \(8, 4, 64\) torch.float32"),
        (pool.q[:8, :, ::2], pool.k, pool.v, r"planned for rows of \(4, 64\)"),
        (pool.q[:8], pool.k[:, :8], pool.v, r"dense ones of \(16, 2, 64\)"),
        (pool.q[:8], pool.k, pool.v.half(), "float16"),
        (pool.q[:8], pool.k.transpose(1, 2).contiguous().transpose(1, 2), pool.v, "dense"),
    ]:
        with pytest.raises(ValueError, match=says):
            attention.attend(q, k, v, SIZES.scale)


def test_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(ImportError, match=r"pip install 'xgr-runtime\[cuda\]'"):
        make()


def test_backends_for_a_gpu(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
    found = {"triton", "flashinfer"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    assert choose_backend("auto", "cuda:1") == ("cuda", "the fastest backend for device cuda")
    assert choose_backend("cuda", "cuda") == ("cuda", "asked for by name")
    for name, device in [("cpu", "cuda"), ("reference", "cuda:0"), ("cuda", "cpu"), ("fast", "cuda")]:
        with pytest.raises(ValueError, match=f"{name!r} does not serve device {device!r}"):
            choose_backend(name, device)
    with pytest.raises(ValueError, match="'mps'"):
        choose_backend("auto", "mps")
    found.discard("flashinfer")
    with pytest.raises(ValueError, match=r"needs flashinfer: pip install 'xgr-runtime\[cuda\]'"):
        choose_backend("auto", "cuda")


def test_a_plan_of_another_backend_is_refused(stream: Stream) -> None:
    empty = torch.empty(0, 1, 1)
    with pytest.raises(ValueError, match="'cuda' was given a SharedPlan"):
        shared_attention(empty, empty, empty, SharedPlan([0], [], [], PAGE), 1.0, "cuda")
    with pytest.raises(ValueError, match="'cpu' was given a PagedAttention"):
        shared_attention(empty, empty, empty, make(), 1.0, "cpu")
    with pytest.raises(ValueError, match="PagedAttention"):
        causal_attention(empty, empty, empty, [0], 1.0, backend="cuda")


# --- the arithmetic, without tensors ---

H200 = Processor(132, (9, 0))


def sizes_of(q_heads: int, kv_heads: int, head_dim: int = 128) -> AttentionSizes:
    return AttentionSizes(q_heads, kv_heads, head_dim, PAGE, torch.bfloat16, HOST, head_dim**-0.5)


@pytest.mark.parametrize(
    ("rows", "megabytes"), [(512, 69.7), (2048, 167.0), (8192, 572.8)], ids=["R=512", "R=2048", "R=8192"]
)
def test_float_workspace_is_what_the_library_asks_for(rows: int, megabytes: float) -> None:
    """By flashinfer 0.6.18's scheduler.cuh, worked out by hand for 32 / 8 heads, 16 slots, 132 processors."""
    assert paged_rules.float_bytes(sizes_of(32, 8), rows, 16, 132) == pytest.approx(megabytes * 1e6, rel=1e-3)


def test_memory_of_a_bucket_holds_that_of_smaller_ones() -> None:
    for sizes in (sizes_of(16, 8), sizes_of(32, 8), sizes_of(40, 8, 64), sizes_of(8, 1, 256)):
        for requests in (1, 16, 64):
            for count in (paged_rules.float_bytes, paged_rules.int_bytes):
                given = [count(sizes, rows, requests, 132) for rows in (1, 8, 63, 64, 65, 512, 2048, 8192)]
                assert max(given) == given[-1]


@pytest.mark.parametrize(
    ("heads", "rows", "device", "want"),
    [
        ((16, 8), [64], H200, "fa2"),  # 16 tiles for 132 multiprocessors
        ((16, 8), [1024], H200, "fa3"),  # 128 tiles: one wave, nearly full
        ((16, 8), [1100], H200, "fa2"),  # 144: a second wave, nearly empty
        ((32, 8), [2048], H200, "fa3"),
        ((32, 8), [8192], H200, "fa3"),
        ((32, 8), [50] * 20, H200, "fa2"),  # tiles of 128 rows, most of them empty
        ((32, 8), [8192], Processor(108, (8, 0)), "fa2"),
        ((32, 8), [8192], Processor(148, (10, 0)), "fa2"),
    ],
    ids=str,
)
def test_algorithm_by_tiles(heads: tuple[int, int], rows: list[int], device: Processor, want: str) -> None:
    assert choose_algorithm(sizes_of(*heads), [(count, 1000) for count in rows], device) == want


def test_algorithm_by_lengths() -> None:
    """A ninth request begins a second wave of FA3's tiles, which lasts as long as its prompt is."""
    sizes, rows = sizes_of(16, 8), 128
    assert choose_algorithm(sizes, [(rows, 1000)] * 9, H200) == "fa2"
    assert choose_algorithm(sizes, [(rows, 4), *[(rows, 1000)] * 8], H200) == "fa3"


@pytest.mark.parametrize(
    ("rows", "useful", "safest"),
    [(64, ("fa2",), "fa2"), (640, ("fa2", "fa3"), "fa2"), (1024, ("fa2", "fa3"), "fa2"),
     (2048, ("fa2", "fa3"), "fa3"), (8192, ("fa3",), "fa3")],
    ids=lambda value: f"R={value}" if isinstance(value, int) else "",
)  # fmt: skip
def test_algorithms_of_a_bucket(rows: int, useful: tuple[str, ...], safest: str) -> None:
    """Whatever cohort comes, the best of a bucket's graphs is the best of all."""
    served = range(rows // 2 + 1, rows + 1)
    sizes, made = sizes_of(32, 8), useful_algorithms(sizes_of(32, 8), served, 16, H200)
    assert made == useful and safest_algorithm(sizes, served, 16, H200) == safest
    assert useful_algorithms(sizes, served, 16, Processor(108, (8, 0))) == ("fa2",)
    for requests in (1, 2, 8, 16):
        for total in (served[0], rows):
            cohort = [(total // requests, 500)] * requests
            assert choose_algorithm(sizes, cohort, H200) in made


def test_quickest_of_a_bucket(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request of 1,024 rows fills FA3's tiles, 16 of 64 rows leave half of each empty."""
    workspace = Workspace(SIZES, rows=8, requests=2, page_entries=4)
    one, other = (
        PagedAttention(SIZES, workspace, rows=8, requests=2, page_entries=4, causal=False, algorithm=name)
        for name in ("fa2", "fa3")
    )
    monkeypatch.setattr(paged, "device_facts", lambda device: Processor(32, (9, 0)))
    assert quickest([one, other], [1024], [300]) == 1
    assert quickest([one, other], [64] * 16, [300] * 16) == 0
    assert quickest([other], [64] * 16, [300] * 16) == 0


# --- our own kernel, where the library has none ---


@pytest.mark.parametrize("causal", [False, True], ids=["shared", "causal"])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim", "dtype"),
    [(6, 2, 24, torch.float32), (2, 2, 96, torch.float16)],
    ids=["float32", "D=96"],
)
def test_own_kernel(
    stream: Stream, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, causal: bool
) -> None:
    """A long prompt, an empty one, one row; more rows than a tile has; pages of others hold NaN."""
    from xgr_kernels.attention.paged.own import OwnAttention

    sizes = AttentionSizes(q_heads, kv_heads, head_dim, PAGE, dtype, HOST, head_dim**-0.5)
    workspace = Workspace(sizes, rows=80, requests=5, page_entries=9)
    attention = OwnAttention(
        sizes, workspace, rows=80, requests=5, page_entries=9, causal=causal, algorithm="own"
    )
    g = torch.Generator().manual_seed(1)
    k, v = (torch.randn(12, PAGE, kv_heads, head_dim, generator=g).to(dtype) for _ in range(2))
    q = torch.randn(80, q_heads, head_dim, generator=g).to(dtype)
    ids = 1 + np.random.default_rng(2).permutation(11).astype(np.int32)
    counts, lengths = [70, 3, 0, 1], [75, 0 if not causal else 3, 0, 17]
    pages = [ids[:5], ids[5:6], ids[:0], ids[6:8]]
    for x in (k, v):
        x[[0, *ids[8:].tolist()]] = torch.nan
        x[int(ids[4]), 75 - 4 * PAGE :] = x[int(ids[7]), 1:] = torch.nan
    offsets = np.cumsum([0, *counts]).tolist()
    attention.plan(offsets, pages, lengths)
    o, lse2 = attention.attend(q, k, v, sizes.scale)
    limit = 2e-6 if dtype == torch.float32 else 2e-3  # roundings of the weights and of the output
    for b, length in enumerate(lengths):
        rows = slice(offsets[b], offsets[b + 1])
        keys, values = (x[torch.from_numpy(pages[b]).long()].flatten(0, 1)[:length] for x in (k, v))
        want, want_lse = attend(q[rows], keys, values, sizes.scale, causal)
        torch.testing.assert_close(o[rows].double(), want, rtol=0, atol=limit)
        torch.testing.assert_close(lse2[rows].double(), want_lse, rtol=0, atol=limit)
    assert (o[offsets[-1] :] == 0).all() and (lse2[offsets[-1] :] == 0).all()


def test_own_kernel_is_for_what_the_library_does_not_serve(stream: Stream) -> None:
    sizes = replace(SIZES, head_dim=96)
    assert choose_algorithm(sizes, [(64, 9)], H200) == "own" != choose_algorithm(SIZES, [(64, 9)], H200)
    assert useful_algorithms(sizes, range(1, 65), 4, H200) == ("own",)
    assert safest_algorithm(sizes, range(1, 65), 4, H200) == "own"
    workspace = Workspace(sizes, rows=8, requests=2, page_entries=4)
    assert workspace.scratch.numel() == 0
    for made_for, algorithm, use in [(sizes, "fa2", "own"), (SIZES, "own", "fa2 or fa3")]:
        with pytest.raises(ValueError, match=f"{algorithm!r} for these sizes: use {use}"):
            PagedAttention(
                made_for, workspace, rows=8, requests=2, page_entries=4, causal=False, algorithm=algorithm
            )


# --- the stand-in against the library ---


def library_source() -> Path:
    """The module of the library that defines the wrapper, without importing it: that takes a GPU build."""
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package flashinfer-python (extra cuda) to read its source; no GPU")
    return Path(spec.submodule_search_locations[0]) / "prefill.py"


@pytest.mark.parametrize("method", ["__init__", "reset_workspace_buffer", "plan", "run"])
def test_the_library_takes_what_the_stand_in_takes(method: str) -> None:
    ours = flashinfer_stand_in.BatchPrefillWithPagedKVCacheWrapper
    tree = ast.parse(library_source().read_text(encoding="utf-8"))
    theirs = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == ours.__name__)
    # The last of its name: those before it are overloads for type checkers.
    found = [n for n in theirs.body if isinstance(n, ast.FunctionDef) and n.name == method][-1]
    names = [a.arg for a in (*found.args.args, *found.args.kwonlyargs)]
    required = len(found.args.args) - len(found.args.defaults)
    signature = inspect.signature(getattr(ours, method)).parameters
    mine = list(signature)
    assert mine == [name for name in names if name in mine]
    assert names[:required] == mine[:required]
    positional = [n for n, p in signature.items() if p.default is p.empty]
    assert positional == names[: len(positional)]


def test_the_library_has_the_attributes_that_are_set() -> None:
    source = library_source().read_text(encoding="utf-8")
    for name in ("_pin_memory_int_workspace_buffer", "_plan_info", "_int_workspace_buffer"):
        assert f"self.{name} = " in source
