"""The checks that a GPU will meet, on kernels that are right and on kernels with a mistake of each kind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flashinfer_stand_in
import interpret_triton  # noqa: F401, before the kernels
import pytest
import torch
from lab import Lab
from results import Record

pytest.importorskip("triton", reason="needs the package triton, which exists for Linux")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # an interpreter overflows where a GPU is silent
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="needs a machine without a GPU, where Triton interprets"
    ),
]

import attention_checks  # noqa: E402
import replay_checks  # noqa: E402
import selection_checks  # noqa: E402

from xgr_kernels.attention.tail import reference as tail_reference  # noqa: E402

Check = Callable[[Record, Lab], None]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(toy=True, out=tmp_path, scratch=tmp_path, seed=3)


def status(check: Check, lab: Lab) -> str:
    record = Record("check")
    check(record, lab)
    assert record.checks and not record.errors, record.errors
    return record.status


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
def test_tail(mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*of: Any) -> torch.Tensor:
        return tail_reference.attend(*TAIL_MISTAKES[mistake](*of))

    monkeypatch.setattr(attention_checks.tail_cuda, "attend", attend)  # type: ignore[attr-defined]
    assert (status(attention_checks.tail, lab) == "ok") == (mistake == "none")


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

    def check(record: Record, lab: Lab) -> None:
        if work == "paged":
            attention_checks.paged(record, lab, True, [(16, 8, 128)], "bfloat16")
        else:
            replay_checks.attention(record, lab, True)

    assert (status(check, lab) == "ok") == (mistake == "none")


SELECT_MISTAKES: dict[str, Callable[[Any], Any]] = {
    "none": lambda got: got,
    "one-missing": lambda got: replace(got, offsets=got.offsets.clip(max=len(got.score) - 1)),
    "score-off-by-a-bit": lambda got: replace(got, score=got.score * (1 + 2e-7)),
}


@pytest.mark.parametrize("mistake", SELECT_MISTAKES)
def test_selection(mistake: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = selection_checks.cuda_batch.unpack  # type: ignore[attr-defined]
    monkeypatch.setattr(
        selection_checks.cuda_batch,  # type: ignore[attr-defined]
        "unpack",
        lambda *of: SELECT_MISTAKES[mistake](right(*of)),  # type: ignore[attr-defined]
    )
    found = status(selection_checks.against_reference, lab)
    assert (found == "ok") == (mistake == "none")
