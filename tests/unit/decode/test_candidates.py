"""Candidates in portions: each has the score that a search which drops nothing gives it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from made_catalogs import build_from_arrays
from scored_searches import Searches, slow_beams
from transformers import AutoModelForCausalLM

from decode_worker.phases import TaskPhase
from decode_worker.task import DecodeTask, TaskFactory
from xgr_runtime.catalog import Catalog, Catalogs, CatalogView, Forced, Scoring
from xgr_runtime.errors import BadRequest
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend
from xgr_runtime.scheduling.cost_model import portion_sizes
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import AttemptId, DecodeRequest, Limits

pytestmark = pytest.mark.usefixtures("one_thread_each")

DEPTH, LEAVES, VOCAB = 3, 60, 97
PROMPT = [5, 17, 60, 17, 33, 8, 91]
TOLERANCE = 1e-4  # float32, over a few tokens
FORCED = Scoring((Forced(90), Forced(12, False)), (Forced(91),))


@pytest.fixture(scope="module")
def model_and_backend(make_checkpoint: MakeCheckpoint) -> tuple[Any, ModelBackend]:
    path = make_checkpoint("qwen3", 2, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, load_backend("transformers", path, "float32")


def catalog_of(scoring: Scoring) -> Catalog:
    """Sixty SIDs of few tokens, so that most share prefixes."""
    rng = np.random.default_rng(3)
    flat = rng.choice(6**DEPTH, LEAVES, replace=False)
    sids = np.stack([flat // 36, flat // 6 % 6, flat % 6], axis=1) + 3
    return build_from_arrays([str(i) for i in range(LEAVES)], sids, vocab_size=VOCAB, scoring=scoring)


def task_of(
    searches: Searches, candidates: np.ndarray, limits: Limits, given: bool = True, **asked: Any
) -> DecodeTask:
    """Its prompt is here, and its first search may run."""
    catalog = searches.catalog
    request = DecodeRequest(
        **{
            "id": AttemptId(1, 1, 1, 1, 1),
            "tokens": pack(np.array([*PROMPT, *catalog.scoring.prompt_head], np.int32)),
            "width": len(candidates),
            "results": len(candidates),
            "score_mode": "vocab",
            "catalog": catalog.version,
            "allow": None,
            "deny": b"",
            "timeout": 60.0,
            "candidates": pack(candidates.astype(np.int32)),
            **asked,
        }
    )
    view = CatalogView(catalog)
    task = TaskFactory(Catalogs(view), searches.backend.identity, limits).make(request, 0.0)
    ready = searches.search(PROMPT, task.question)
    task.pages = ready.pages
    task.hidden = ready.hidden.tobytes() if given and ready.hidden is not None else None
    task.start_search(np.arange(task.most_beams, dtype=np.int32), searches.tail_tokens, 0.0)
    return task


def run(searches: Searches, task: DecodeTask) -> list[float]:
    """Until it is over; the widths of its portions."""
    widths: list[float] = []
    while True:
        assert task.search is not None
        widths.append(task.question.width)
        while task.phase is not TaskPhase.OVER:
            assert len(task.search.scores) <= len(task.search.rows)
            searches.engine.launch([task.search])
        if not task.goes_on():
            return widths


@pytest.mark.parametrize("mode", ["vocab", "legal", "level"])
@pytest.mark.parametrize(
    ("scoring", "given", "penalty"),
    [(Scoring(), False, 1.0), (FORCED, True, 1.0), (Scoring(), True, 1.3)],
    ids=["no-hidden", "forced", "penalty"],
)
def test_scores_are_those_of_a_search_that_drops_nothing(
    model_and_backend: tuple[Any, ModelBackend], mode: Any, scoring: Scoring, given: bool, penalty: float
) -> None:
    model, backend = model_and_backend
    catalog = catalog_of(scoring)
    searches = Searches(backend, catalog)
    live = np.setdiff1d(np.arange(LEAVES), [4, 21, 22, 23])
    candidates = live[::3]
    task = task_of(
        searches,
        candidates,
        Limits(4096, 7),
        given,
        score_mode=mode,
        repetition_penalty=penalty,
        deny=pack(np.array([4, 21, 22, 23], np.int32)),
    )
    widths = run(searches, task)
    assert widths == portion_sizes(len(candidates), 7) and len(widths) == 3
    leaves, scores = task.answer()
    expected = dict(slow_beams(model, catalog, PROMPT, LEAVES, mode, penalty, live.tolist()))
    assert sorted(leaves.tolist()) == candidates.tolist()
    assert (np.diff(scores) <= 0).all()
    for sid, score in zip(catalog.sids[leaves].tolist(), scores.tolist(), strict=True):
        assert abs(score - expected[tuple(sid)]) <= TOLERANCE, (sid, score)


def test_work_is_that_of_the_portions_left(model_and_backend: tuple[Any, ModelBackend]) -> None:
    searches = Searches(model_and_backend[1], catalog_of(Scoring()))
    task = task_of(searches, np.arange(LEAVES), Limits(4096, 16))
    left = [task.work_left]
    while True:
        assert task.search is not None
        searches.engine.launch([task.search])
        if task.phase is TaskPhase.OVER and not task.goes_on():
            break
        left.append(task.work_left)
    assert [work.launches for work in left] == [*range(4 * DEPTH, 0, -1)]
    assert all(more.tokens > less.tokens for more, less in pairwise(left))


@pytest.mark.parametrize(
    ("candidates", "asked"),
    [
        ([], {}),
        ([3, 3], {}),
        ([5, 2], {}),
        ([-1, 2], {}),
        ([2, LEAVES], {}),
        ([2, 4], {"deny": pack(np.array([4], np.int32))}),
        ([2, 4], {"allow": pack(np.array([2, 3], np.int32))}),
        ([2, 4], {"width": 3}),
        ([2, 4], {"results": 1}),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused(
    model_and_backend: tuple[Any, ModelBackend], candidates: list[int], asked: dict[str, Any]
) -> None:
    searches = Searches(model_and_backend[1], catalog_of(Scoring()))
    with pytest.raises(BadRequest):
        task_of(searches, np.array(candidates, np.int32), Limits(4096, 16), **asked)


@pytest.mark.parametrize("mode", ["vocab", "legal"])
def test_a_device_with_plain_scores_has_the_mode_vocab_alone(
    model_and_backend: tuple[Any, ModelBackend], mode: str
) -> None:
    searches = Searches(model_and_backend[1], catalog_of(Scoring()))
    limits = Limits(4096, 16, plain_scores=True)
    if mode == "vocab":
        assert task_of(searches, np.arange(3), limits, score_mode=mode).portions is not None
        return
    with pytest.raises(BadRequest, match="vocab alone"):
        task_of(searches, np.arange(3), limits, score_mode=mode)


@pytest.mark.parametrize(("candidates", "together"), [(1, 1), (7, 7), (8, 7), (10_000, 1024), (5, 1)])
def test_portions_hold_all_and_the_first_is_the_largest(candidates: int, together: int) -> None:
    sizes = portion_sizes(candidates, together)
    assert sum(sizes) == candidates and sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] <= sizes[0] <= together and len(sizes) == -(-candidates // together)
