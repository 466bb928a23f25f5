"""Paged attention planned by FlashInfer's own planner, on a played GPU: memory, layout, and who does what."""

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flashinfer_planner import FA2_NAMES, Gpu, Work, build, fa2_work, fa3_work, read, take_its_place

from xgr_kernels.attention.paged import AttentionSizes, PagedAttention, Workspace
from xgr_kernels.attention.paged import rules as paged_rules

H200, A100 = Gpu(132, (9, 0), 227 << 10), Gpu(108, (8, 0), 163 << 10)
PAGE, REQUESTS = 16, 16
HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("planner"))


@dataclass(frozen=True)
class Cohort:
    """Requests of one launch."""

    rows: list[int]
    lengths: list[int]

    @property
    def offsets(self) -> list[int]:
        return np.cumsum([0, *self.rows]).tolist()

    @property
    def pages(self) -> list[np.ndarray]:
        return [np.zeros(-(-length // PAGE), np.int32) for length in self.lengths]


def cohorts(rows: int, causal: bool) -> Sequence[Cohort]:
    """Full and nearly empty ones, requests without rows or keys, and random ones of up to 16 requests."""
    rng = np.random.default_rng(rows)
    made = [Cohort([rows], [max(rows, 5000)]), Cohort([1], [1]), Cohort([], []), Cohort([0, 1], [40, 17])]
    for requests in (2, 7, REQUESTS):
        cuts = np.sort(rng.integers(0, rows + 1, requests - 1))
        widths = np.diff(np.r_[0, cuts, rows]).tolist()
        lengths = [int(x) for x in rng.integers(0, 3000, requests)]
        made.append(
            Cohort(widths, [x + width if causal else x for x, width in zip(lengths, widths, strict=True)])
        )
    return made


def sizes_of(q_heads: int, kv_heads: int, head_dim: int) -> AttentionSizes:
    return AttentionSizes(q_heads, kv_heads, head_dim, PAGE, torch.bfloat16, HOST, head_dim**-0.5)


def make(sizes: AttentionSizes, rows: int, algorithm: str, causal: bool) -> PagedAttention:
    workspace = Workspace(sizes, rows=rows, requests=REQUESTS, page_entries=8192, depth=1)
    return PagedAttention(
        sizes, workspace, rows=rows, requests=REQUESTS, page_entries=8192, causal=causal, algorithm=algorithm
    )


def wanted(cohort: Cohort, heads: int, group: int, tile: int, chunk: int) -> Counter[Work]:
    """Every tile of rows of every request and head, with every chunk of its keys, once."""
    return Counter(
        (b, head, q_tile, kv_tile)
        for b, (rows, length) in enumerate(zip(cohort.rows, cohort.lengths, strict=True))
        for head in range(heads)
        for q_tile in range(-(-rows * group // tile))
        for kv_tile in range(max(1, -(-length // chunk)))
    )


def check_fa2(attention: PagedAttention, sizes: AttentionSizes, cohort: Cohort) -> None:
    """Who does what; and that the sums of split keys have room and find each other."""
    info, plan = list(attention._wrapper._plan_info), attention._wrapper._int_workspace_buffer
    at = dict(zip(FA2_NAMES, info, strict=True))
    assert at["tile_rows"] == paged_rules.fa2_tile(sizes, attention.rows, REQUESTS)
    chunk = read(plan, at["chunk_at"], 1)[0]
    assert chunk % PAGE == 0
    work = fa2_work(info, plan, sizes)
    assert work == wanted(cohort, sizes.kv_heads, sizes.group, at["tile_rows"], chunk)
    chunks = [max(1, -(-length // chunk)) for length in cohort.lengths]
    parts = np.repeat(chunks, cohort.rows)  # of each row
    assert read(plan, at["rows_at"], 1) == [len(parts)]
    assert read(plan, at["merge_at"], len(parts) + 1) == np.cumsum([0, *parts]).tolist()
    begins = np.cumsum([0, *(n * rows for n, rows in zip(chunks, cohort.rows, strict=True))]).tolist()
    assert read(plan, at["o_at"], len(begins)) == begins
    scratch = attention._wrapper._float_workspace_buffer.numel()
    assert at["v_at"] + begins[-1] * sizes.q_heads * sizes.head_dim * 4 <= at["s_at"]
    assert at["s_at"] + begins[-1] * sizes.q_heads * 4 <= scratch


HEADS = [(16, 8, 128), (40, 8, 64), (8, 1, 256)]
SIZES = pytest.mark.parametrize("sizes", [sizes_of(*heads) for heads in HEADS], ids=map(str, HEADS))
ROWS = pytest.mark.parametrize("rows", [1, 15, 16, 64, 1024], ids="R={}".format)


@SIZES
@ROWS
@pytest.mark.parametrize("gpu", [H200, A100], ids=["132", "108"])
def test_fa2(
    gpu: Gpu, rows: int, sizes: AttentionSizes, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_its_place(monkeypatch, library, gpu)
    for causal in (False, True):
        attention = make(sizes, rows, "fa2", causal)
        for cohort in cohorts(rows, causal):
            attention.plan(cohort.offsets, cohort.pages, cohort.lengths)
            check_fa2(attention, sizes, cohort)


@SIZES
@ROWS
def test_fa3(rows: int, sizes: AttentionSizes, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(monkeypatch, library, H200)
    for causal in (False, True):
        attention = make(sizes, rows, "fa3", causal)
        for cohort in cohorts(rows, causal):
            attention.plan(cohort.offsets, cohort.pages, cohort.lengths)
            wrapper = attention._wrapper
            work = fa3_work(list(wrapper._plan_info), wrapper._int_workspace_buffer, H200.multiprocessors)
            tile = paged_rules.fa3_tile(sizes.head_dim)
            assert work == wanted(cohort, sizes.q_heads, 1, tile, chunk=1 << 30)


# ---- planted mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "algorithm"), [("float_bytes", "fa2"), ("int_bytes", "fa3")])
def test_memory_that_is_too_small_is_noticed(
    memory: str, algorithm: str, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of split keys are FA2's alone, since 0.7 in a fraction of the memory; FA3 has larger plans."""
    take_its_place(monkeypatch, library, H200)
    enough = getattr(paged_rules, memory)
    monkeypatch.setattr(f"xgr_kernels.attention.paged.workspace.{memory}", lambda *args: enough(*args) // 16)
    with pytest.raises(RuntimeError, match=r"[Oo]verflow|[Ff]ailed to allocate"):
        make(sizes_of(16, 8, 128), 1024, algorithm, causal=True)


def test_a_layout_that_moves_is_noticed(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(monkeypatch, library, H200)
    attention = make(sizes_of(16, 8, 128), 64, "fa2", causal=False)
    attention._wrapper._max_total_num_rows = None  # as if the library forgot what it was told first
    with pytest.raises(RuntimeError, match="graphs are void"):
        attention.plan([0, 16], [np.zeros(2, np.int32)], [20])


def test_work_that_is_done_twice_is_noticed(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(monkeypatch, library, H200)
    sizes, cohort = sizes_of(16, 8, 128), Cohort([64], [5000])
    attention = make(sizes, 64, "fa2", causal=False)
    attention.plan(cohort.offsets, cohort.pages, cohort.lengths)
    check_fa2(attention, sizes, cohort)
    at = dict(zip(FA2_NAMES, attention._wrapper._plan_info, strict=True))["kv_tile_at"]
    kv_tiles = attention._wrapper._int_workspace_buffer[at : at + 8].view(torch.int32)
    assert kv_tiles.tolist() == [0, 1]
    kv_tiles[1] = 0
    with pytest.raises(AssertionError):
        check_fa2(attention, sizes, cohort)
