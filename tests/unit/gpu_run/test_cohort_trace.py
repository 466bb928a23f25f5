"""What is read from a profile of a cohort, on profiles made by hand."""

from pathlib import Path
from typing import Any

import cohort_trace
import interpret_triton  # noqa: F401, before the kernels
import pytest
import results
import table
from results import Figures, Results


def call(name: str, ts: float, dur: float = 1.0, cat: str = "cuda_runtime") -> dict[str, Any]:
    return {"name": name, "cat": cat, "ts": ts, "dur": dur}


GOOD = [
    call("cudaMemcpyAsync", 10),
    call("cudaGraphLaunch", 20),
    call("cudaEventQuery", 25),
    call("cuLaunchKernelEx", 30, cat="cuda_driver"),
    {"name": "thread_name", "ph": "M"},  # a trace also has entries without a time
]


def test_a_cohort_that_is_queued_at_once_has_no_waits() -> None:
    assert cohort_trace.waits(GOOD) == [] and cohort_trace.launches(GOOD) == 3


@pytest.mark.parametrize(
    "name", ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cudaMalloc", "cudaFree"]
)
def test_a_wait_between_launches_is_found(name: str) -> None:
    assert cohort_trace.waits([*GOOD, call(name, 22)]) == [name]


@pytest.mark.parametrize("ts", [5, 35])
def test_a_wait_before_or_behind_all_launches_is_not_the_cohorts(ts: float) -> None:
    assert cohort_trace.waits([*GOOD, call("cudaStreamSynchronize", ts)]) == []


def test_asking_for_an_event_that_has_passed_is_no_wait() -> None:
    assert cohort_trace.waits([*GOOD, call("cudaEventSynchronize", 22, dur=3)]) == []
    assert cohort_trace.waits([*GOOD, call("cudaEventSynchronize", 22, dur=900)]) == [
        "cudaEventSynchronize of 900 us"
    ]


def test_a_copy_from_memory_that_is_not_pinned_waits() -> None:
    copies = [
        call("Memcpy HtoD (Pageable -> Device)", 23, cat="gpu_memcpy"),
        call("Memcpy HtoD (Pinned -> Device)", 24, cat="gpu_memcpy"),
    ]
    assert cohort_trace.waits([*GOOD, *copies]) == ["Memcpy HtoD (Pageable -> Device)"]


def test_nothing_launched_is_nothing_found() -> None:
    assert cohort_trace.waits([call("cudaStreamSynchronize", 1)]) == []
    assert cohort_trace.span([]) == 0.0 and cohort_trace.shares([], []) == {}


DEVICE = [
    call("nvjet_tst_128x256", 100, 50, "kernel"),
    call("void flashinfer::BatchPrefillWithPagedKVCacheKernel<...>", 150, 20, "kernel"),
    call("void flashinfer::PersistentVariableLengthMergeStatesKernel<...>", 170, 2, "kernel"),
    call("tail_attention_kernel", 172, 3, "kernel"),
    call("row_statistics", 175, 10, "kernel"),
    call("nvjet_tst_128x256", 185, 10, "kernel"),
    call("Memcpy DtoH (Device -> Pinned)", 195, 4, "gpu_memcpy"),
    call("Memcpy HtoD (Pinned -> Device)", 90, 1, "gpu_memcpy"),
]


def test_where_the_time_went() -> None:
    seconds = cohort_trace.shares([*GOOD, *DEVICE], ["row_statistics"])
    micros = {purpose: round(1e6 * part) for purpose, part in seconds.items()}
    assert micros == {
        "forward": 60,
        "attention": 22,
        "tail": 3,
        "select": 10,
        "read-back": 4,
        "upload": 1,
    }
    assert cohort_trace.span([*GOOD, *DEVICE]) == pytest.approx(109e-6)
    assert cohort_trace.longest(DEVICE, 1) == [("nvjet_tst_128x256", pytest.approx(60e-6))]


def test_copies_beside_kernels() -> None:
    events = [
        call("matmul", 100, 50, "kernel"),
        call("matmul", 160, 10, "kernel"),
        call("Memcpy HtoD (Pinned -> Device)", 140, 24, "gpu_memcpy"),  # 10 beside the first, 4 the second
        call("Memcpy DtoH (Device -> Pinned)", 200, 6, "gpu_memcpy"),  # alone
        call("Memcpy DtoD (Device -> Device)", 110, 6, "gpu_memcpy"),  # not with the host
    ]
    assert cohort_trace.hidden_copies(events) == (pytest.approx(14e-6), pytest.approx(30e-6))


def test_overlapping_kernels_hide_a_copy_once() -> None:
    events = [
        call("a", 100, 50, "kernel"),
        call("b", 110, 50, "kernel"),
        call("Memcpy HtoD (Pinned -> Device)", 120, 30, "gpu_memcpy"),
    ]
    assert cohort_trace.hidden_copies(events) == (pytest.approx(30e-6), pytest.approx(30e-6))


@pytest.fixture
def profiles() -> Any:
    pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
    import profiles

    return profiles


def read(profiles: Any, folder: Path, *more: dict[str, object]) -> Results:
    profiles.read_cohorts(Figures(folder, "test_decode"), [*GOOD, *DEVICE, *more], cohorts=2, floor=50e-6)
    return results.read(folder)


def test_a_profile_without_waits(profiles: Any, tmp_path: Path) -> None:
    found = read(profiles, tmp_path)
    figures = {what: figure for (_, what), figure in found.figures.items()}
    assert figures["launches of a cohort"]["count"] == 1.5
    assert figures["launches of a cohort"]["select %"] == pytest.approx(10)
    assert figures["device time of a cohort"]["seconds"] == pytest.approx(109e-6 / 2)
    assert figures["device time of a cohort"]["busy"] == pytest.approx(50e-6)
    assert [(goal["value"], goal["met"]) for goal in found.goals.values()] == [(pytest.approx(0.17), False)]
    assert "nvjet_tst_128x256" in table.markdown(found)


def test_a_wait_fails_the_test(profiles: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cudaStreamSynchronize"):
        read(profiles, tmp_path, call("cudaStreamSynchronize", 22))


def test_the_kernels_of_selection_are_known_by_name(profiles: Any) -> None:
    names = profiles.selection_kernels()
    assert {"row_statistics", "collect", "emit"} <= set(names)
    assert not any(name.startswith("_") for name in names)
