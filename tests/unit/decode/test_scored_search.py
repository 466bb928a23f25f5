"""Forced tokens, softmax per level, penalties: as Hugging Face's `generate` ranks, and as defined."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from checkpoints import MakeCheckpoint
from constrained_generate import constrained_generate
from made_catalogs import build_from_arrays
from scored_searches import Searches, assert_ranked, children_of, emitted, question_of, slow_beams
from transformers import AutoModelForCausalLM

from decode_worker.engines.adjusted_rows import adjust
from xgr_kernels.beam_select import BeamBatch
from xgr_kernels.trie import ScoreMode
from xgr_runtime.catalog import Catalog, Forced, Scoring
from xgr_runtime.errors import BadRequest
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.choice import load_backend

pytestmark = pytest.mark.usefixtures("one_thread_each")

DEPTH, LEAVES, VOCAB = 3, 60, 97
# float32 as everywhere; a path of more tokens adds up more of it.
TOLERANCE = 1e-4
PROMPT = [5, 17, 60, 17, 33, 8, 91]

HEAD, TAIL = (Forced(90),), (Forced(91), Forced(7))
OFF = [Forced(12, False), Forced(13, False)]
SCORINGS = {
    "plain": Scoring(),
    "head": Scoring(HEAD),
    "tail": Scoring((), TAIL),
    "both": Scoring(HEAD, TAIL),
    "of a level": Scoring((Forced(20),), (Forced(40),)),  # tokens that SIDs have, too
}
UNSCORED = {
    "in the tail": Scoring((), (OFF[0], Forced(91))),
    "at both ends": Scoring((OFF[0], Forced(90)), (Forced(91), OFF[1])),
    "inside": Scoring((Forced(90), OFF[0]), (Forced(91), OFF[0], OFF[1], Forced(7))),
    "everything": Scoring((OFF[0],), (OFF[1],)),
}


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Any:
    return make_checkpoint("qwen3", 2, num_hidden_layers=2)


@pytest.fixture(scope="module")
def backend(folder: Any) -> ModelBackend:
    return load_backend("transformers", folder, "float32")


@pytest.fixture(scope="module")
def model(folder: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def catalog_of(scoring: Scoring) -> Catalog:
    levels = np.random.default_rng(3).integers([15, 35, 55], [27, 47, 67], (LEAVES, DEPTH))
    return build_from_arrays([str(n) for n in range(LEAVES)], levels, scoring=scoring, vocab_size=VOCAB)


@pytest.mark.in_turns("name")
@pytest.mark.parametrize("width, penalty", [(5, 1.3), (100, 0.7)])
@pytest.mark.parametrize("name", SCORINGS)
def test_as_generate_ranks(name: str, width: int, penalty: float, backend: ModelBackend, model: Any) -> None:
    catalog = catalog_of(SCORINGS[name])
    paths = emitted(catalog)
    (theirs,) = constrained_generate(
        model, [PROMPT], children_of(paths), catalog.emitted_tokens, width, repetition_penalty=penalty
    )
    sids = {path: sid for sid, path in paths.items()}
    got = Searches(backend, catalog).ranked(PROMPT, width, penalty=penalty)
    assert len(got) == min(width, catalog.leaves)
    assert_ranked(got, [(sids[path], score) for path, score in theirs], TOLERANCE)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
@pytest.mark.parametrize("name", ["plain", "both"])
def test_a_softmax_behind_the_penalty(name: str, penalty: float, backend: ModelBackend, model: Any) -> None:
    catalog = catalog_of(
        msgspec.structs.replace(SCORINGS[name], renormalize=True, repetition_penalty=penalty)
    )
    paths = emitted(catalog)
    (theirs,) = constrained_generate(
        model, [PROMPT], children_of(paths), catalog.emitted_tokens, 20, 0.0, penalty, renormalize=True
    )
    sids = {path: sid for sid, path in paths.items()}
    got = Searches(backend, catalog).ranked(PROMPT, 20)
    assert_ranked(got, [(sids[path], score) for path, score in theirs], TOLERANCE)
    assert_ranked(
        Searches(backend, catalog).ranked(PROMPT, 20, mode="level"),
        slow_beams(model, catalog, PROMPT, 20, "level", penalty),
        TOLERANCE,
    )


@pytest.mark.parametrize("length_penalty", [1.0, -0.5])
def test_the_score_of_a_sequence(length_penalty: float, backend: ModelBackend, model: Any) -> None:
    """What generate divides by is the emitted tokens, forced ones included."""
    catalog = catalog_of(SCORINGS["both"])
    (theirs,) = constrained_generate(
        model, [PROMPT], children_of(emitted(catalog)), 6, 5, length_penalty=length_penalty
    )
    got = Searches(backend, catalog).ranked(PROMPT, 5)
    for (_, total), (_, score) in zip(got, theirs, strict=True):
        assert total / catalog.emitted_tokens**length_penalty == pytest.approx(score, rel=1e-5)


@pytest.mark.in_turns("name")
@pytest.mark.parametrize("width, given", [(1, True), (17, False)])
@pytest.mark.parametrize("name", UNSCORED)
def test_tokens_that_are_not_scored(
    name: str, width: int, given: bool, backend: ModelBackend, model: Any
) -> None:
    catalog = catalog_of(UNSCORED[name])
    got = Searches(backend, catalog).ranked(PROMPT, width, given)
    assert_ranked(got, slow_beams(model, catalog, PROMPT, width), TOLERANCE)


@pytest.mark.in_turns("mode")
@pytest.mark.parametrize("penalty", [1.0, 1.4], ids="p={}".format)
@pytest.mark.parametrize("mode", ["vocab", "legal", "level"])
@pytest.mark.parametrize("name", ["of a level", "inside", "declared"])
def test_every_score_mode(
    name: str, mode: ScoreMode, penalty: float, backend: ModelBackend, model: Any
) -> None:
    declared = Scoring(HEAD, TAIL, level_tokens=((10, 30), (35, 46), (50, 70)))
    catalog = catalog_of({**SCORINGS, **UNSCORED, "declared": declared}[name])
    deny = list(range(0, catalog.leaves, 3))
    live = sorted(set(range(catalog.leaves)) - set(deny))
    got = Searches(backend, catalog).ranked(PROMPT, 20, mode=mode, penalty=penalty, deny=deny)
    assert_ranked(got, slow_beams(model, catalog, PROMPT, 20, mode, penalty, live), TOLERANCE)


def test_the_default_is_the_catalogs(backend: ModelBackend, model: Any) -> None:
    catalog = catalog_of(Scoring(score_mode="level", repetition_penalty=1.2))
    got = Searches(backend, catalog).ranked(PROMPT, 9)
    assert_ranked(got, slow_beams(model, catalog, PROMPT, 9, "level", 1.2), TOLERANCE)


def test_searches_of_every_kind_share_steps(backend: ModelBackend) -> None:
    catalog = catalog_of(UNSCORED["inside"])
    asked: list[dict[str, Any]] = [
        {"mode": mode, "penalty": penalty} for mode in ("vocab", "legal", "level") for penalty in (1.0, 1.3)
    ]
    expected = [Searches(backend, catalog).ranked(PROMPT, 6, **one) for one in asked]
    shared = Searches(backend, catalog)
    running = [shared.search(PROMPT, question_of(catalog, backend, PROMPT, 6, **one)) for one in asked]
    for n, search in enumerate(running):
        search.rows = search.rows + 6 * n
    while left := [search for search in running if not search.over]:
        shared.engine.step(left)
    for search, wanted in zip(running, expected, strict=True):
        leaves, scores = search.answer()
        got = list(zip(map(tuple, catalog.sids[leaves].tolist()), scores.tolist(), strict=True))
        assert_ranked(got, wanted, 2e-5)


def test_a_level_that_adds_nothing_takes_no_selection(backend: ModelBackend) -> None:
    """Its tokens run through the model, as their keys and values are read, and through no head."""
    catalog = catalog_of(UNSCORED["inside"])  # 90, 12; SID; 91, 12, 13, 7
    searches = Searches(backend, catalog)
    search = searches.search(PROMPT, question_of(catalog, backend, PROMPT, 4))
    chose = []
    while not search.over:
        before = search.scores
        chose.append(searches.engine.step([search]) is not None)
        assert chose[-1] or search.scores is before
    assert chose == [True, False, True, True, True, True, False, False, True]


@pytest.mark.parametrize("mode", ["legal", "level"])
def test_a_relative_score_needs_no_tail(mode: ScoreMode, backend: ModelBackend) -> None:
    catalog = catalog_of(SCORINGS["both"])
    assert question_of(catalog, backend, PROMPT, 4, mode).depth == DEPTH + 1
    assert question_of(catalog, backend, PROMPT, 4).depth == DEPTH + 3


@pytest.mark.parametrize("mode", ["vocab", "legal", "level"])
def test_nothing_alive_is_no_answer(mode: ScoreMode, backend: ModelBackend) -> None:
    catalog = catalog_of(UNSCORED["inside"])
    every = list(range(catalog.leaves))
    for penalty in (1.0, 1.3):
        assert not Searches(backend, catalog).ranked(PROMPT, 4, mode=mode, penalty=penalty, deny=every)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_that_is_no_number_stays_one(poison: float, backend: ModelBackend) -> None:
    """The penalty must not make numbers of a model's nonsense."""
    catalog = catalog_of(Scoring())
    searches = Searches(backend, catalog)
    search = searches.search(PROMPT, question_of(catalog, backend, PROMPT, 4, penalty=1.3))
    logits = torch.zeros(1, VOCAB)
    logits[0, 80] = poison
    searches.engine.select([search], logits)
    assert search.invalid


def test_a_prompt_with_a_token_that_the_model_lacks(backend: ModelBackend) -> None:
    catalog = catalog_of(Scoring())
    with pytest.raises(BadRequest, match="outside of the vocabulary"):
        question_of(catalog, backend, [5, VOCAB, 4], 4, penalty=1.3)
    question_of(catalog, backend, [5, VOCAB, 4], 4)


def test_others_rows_are_left_as_they_are(backend: ModelBackend) -> None:
    catalog = catalog_of(Scoring())
    searches = Searches(backend, catalog)
    some = [
        searches.search(PROMPT, question_of(catalog, backend, PROMPT, 4, **asked))
        for asked in ({}, {"penalty": 1.3}, {"mode": "level"}, {})
    ]
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (4, VOCAB)).astype(np.float32))
    before = logits.clone()
    batch = BeamBatch(
        [0, 1, 2, 3, 4],
        [0] * 4,
        [4] * 4,
        [s.question.trie for s in some],
        [s.question.filter for s in some],
        [s.question.normaliser(0) for s in some],
        np.zeros(4, np.float32),
        np.zeros(4, np.int32),
        np.full(4, catalog.leaves, np.int32),
    )
    assert adjust(some, logits, batch).normalisers == ["vocab", "given", "vocab", "vocab"]
    assert torch.equal(logits[[0, 3]], before[[0, 3]])
    logp = before[1].double().log_softmax(0)
    for token in range(VOCAB):
        wanted = float(logp[token]) * (1.3 if token in PROMPT else 1)
        assert float(logits[1, token]) == pytest.approx(wanted, abs=2e-6)
