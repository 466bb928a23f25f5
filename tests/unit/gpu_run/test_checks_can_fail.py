"""The checks that a GPU will meet, on kernels that are right and on kernels with a mistake of each kind."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flashinfer_stand_in
import interpret_triton  # noqa: F401, before the kernels
import pytest
import torch
from lab import Lab

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # an interpreter overflows where a GPU is silent
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="needs a machine without a GPU, where Triton interprets"
    ),
]

import test_attention  # noqa: E402
import test_replays  # noqa: E402
import test_selection  # noqa: E402

from xgr_kernels.attention.tail import reference as tail_reference  # noqa: E402


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(toy=True, out=tmp_path, scratch=tmp_path, seed=3)


def holds(check: Callable[..., None], lab: Lab, cases: Iterable[Iterable[Any]]) -> bool:
    """Whether a test of the other suite passes with all of these cases."""
    try:
        for case in cases:
            check(lab, *case)
    except AssertionError:
        return False
    return True


TAIL_MISTAKES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "none": lambda *of: of,
    "no-tail": lambda q, k, v, tk, tv, anc, rows, n, o, lse2, scale: (
        q, k, v, tk, tv, anc, rows, torch.zeros_like(n), o, lse2, scale
    ),
    "a-neighbours-token": lambda q, k, v, tk, tv, anc, rows, n, o, lse2, scale: (
        q, k, v, tk, tv, anc.roll(1, 0), rows, n, o, lse2, scale
    ),
    "natural-log": lambda q, k, v, tk, tv, anc, rows, n, o, lse2, scale: (
        q, k, v, tk, tv, anc, rows, n, o, lse2 * 0.69, scale
    ),
    "stores-elsewhere": lambda q, k, v, tk, tv, anc, rows, n, o, lse2, scale: (
        q, k, v, tk, tv, anc, rows.roll(1), n, o, lse2, scale
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TAIL_MISTAKES)
def test_tail_attention(mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*of: Any) -> torch.Tensor:
        return tail_reference.attend(*TAIL_MISTAKES[mistake](*of))

    monkeypatch.setattr(test_attention.tail_cuda, "attend", attend)  # type: ignore[attr-defined]
    cases = [case.values for case in test_attention.TOY_TAIL]
    assert holds(test_attention.test_tail, lab, cases) == (mistake == "none")


PAGED_MISTAKES: dict[str, Callable[..., Any]] = {
    "none": lambda attend, q, k, v, scale, causal: attend(q, k, v, scale, causal),
    "causal-forgotten": lambda attend, q, k, v, scale, causal: attend(q, k, v, scale, False),
    "last-token-missed": lambda attend, q, k, v, scale, causal: attend(q, k[:-1], v[:-1], scale, causal),
    "scale": lambda attend, q, k, v, scale, causal: attend(q, k, v, 1.1 * scale, causal),
    "heads-swapped": lambda attend, q, k, v, scale, causal: attend(q.roll(1, 1), k, v, scale, causal),
}


@pytest.mark.parametrize("mistake", PAGED_MISTAKES)
@pytest.mark.parametrize("work", ["paged", "replayed"])
def test_causal_attention(work: str, mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = flashinfer_stand_in.attend
    flashinfer_stand_in.install(monkeypatch)
    monkeypatch.setattr(
        flashinfer_stand_in, "attend", lambda *of, **by: PAGED_MISTAKES[mistake](right, *of, **by)
    )
    if work == "paged":
        cases = [(*case.values, "fa2") for case in test_attention.TOY_PAGED if case.values[0]]
        passed = holds(test_attention.test_paged, lab, cases)
    else:
        passed = holds(test_replays.test_replays, lab, [(True, "fa2")])
    assert passed == (mistake == "none")


SELECT_MISTAKES: dict[str, Callable[[Any], Any]] = {
    "none": lambda got: got,
    "one-missing": lambda got: replace(got, offsets=got.offsets.clip(max=len(got.score) - 1)),
    "score-off-by-a-bit": lambda got: replace(got, score=got.score * (1 + 2e-7)),
}


@pytest.mark.parametrize("mistake", SELECT_MISTAKES)
def test_beam_selection(mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = test_selection.cuda_batch.unpack  # type: ignore[attr-defined]
    monkeypatch.setattr(
        test_selection.cuda_batch,  # type: ignore[attr-defined]
        "unpack",
        lambda *of: SELECT_MISTAKES[mistake](right(*of)),  # type: ignore[attr-defined]
    )
    cases = [
        (*case.values, mode)
        for case in test_selection.levels(test_selection.TOY)
        for mode in test_selection.MODES
    ]
    assert holds(test_selection.test_against_reference, lab, cases) == (mistake == "none")
