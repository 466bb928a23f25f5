"""The reference is right: `generate` with our processor against every SID scored by itself."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import build

from xgr_runtime.catalog.scoring import Forced, Scoring
from xgr_runtime.cli.verify.cases import Case, CaseLine
from xgr_runtime.cli.verify.reference import Emitted, Oracle, referred
from xgr_runtime.cli.verify.sids import SidTable

PROMPT = [3, 9, 20, 41, 9]
CODES = [sid for sid in product(range(20, 23), range(40, 44), (60, 61)) if sum(sid) % 3]
HEAD, TAIL = (Forced(5),), (Forced(7), Forced(8))
SCORINGS = {
    "plain": Scoring(),
    "head": Scoring(head=HEAD, length_penalty=0.0),
    "tail": Scoring(tail=TAIL, length_penalty=0.5),
    "both": Scoring(head=HEAD, tail=TAIL),
    "unscored between": Scoring(head=(Forced(5), Forced(6, False)), tail=(Forced(7, False), Forced(8))),
    "in the prompt": Scoring(head=(Forced(5, False), Forced(6)), tail=(Forced(8), Forced(7, False))),
    "legal": Scoring(tail=TAIL, score_mode="legal"),
    "level": Scoring(head=HEAD, tail=TAIL, score_mode="level"),
    "codebooks": Scoring(score_mode="level", level_tokens=((19, 25), (38, 44), (60, 62))),
    "repetition": Scoring(head=HEAD, tail=(Forced(7), Forced(9)), repetition_penalty=1.3),
    "rewarded repetition": Scoring(repetition_penalty=0.7, length_penalty=0.0),
    "all": Scoring(head=HEAD, tail=TAIL, score_mode="level", repetition_penalty=1.2, length_penalty=2.0),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint that asks for sampling, and the model in it."""
    folder = tmp_path_factory.mktemp("model")
    made = build("qwen2", 2)
    made.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_k": 3, "repetition_penalty": 1.7, "eos_token_id": 41}'
    )
    return folder, made.eval()


def scored(model: Any, sid: tuple[int, ...], scoring: Scoring) -> float:
    """The sequence score of one SID, by the definitions alone."""
    emitted = [*Emitted.of(scoring).head, *((token, True) for token in sid), *Emitted.of(scoring).tail]
    tokens = [*PROMPT, *(token for token, _ in emitted)]
    with torch.inference_mode():
        rows = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    total, before, first = 0.0, len(PROMPT), len(Emitted.of(scoring).head)
    for step, (token, counts) in enumerate(emitted):
        row, level = rows[before + step - 1], step - first
        legal = [token]
        if 0 <= level < len(sid):
            legal = sorted({other[level] for other in CODES if other[:level] == sid[:level]})
        if scoring.score_mode == "level":
            row = relative(row, codes_of(level, token, scoring))
        if token in tokens[: before + step] and scoring.repetition_penalty != 1.0:
            row = row.clone()
            row[token] *= scoring.repetition_penalty if row[token] < 0 else 1 / scoring.repetition_penalty
        if scoring.score_mode == "legal":
            row = relative(row, legal)
        total += float(row[token]) if counts else 0.0
    return total / len(emitted) ** scoring.length_penalty


def relative(row: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    return row - torch.logsumexp(row[tokens], 0)


def codes_of(level: int, token: int, scoring: Scoring) -> list[int]:
    if not 0 <= level < 3:
        return [token]
    if scoring.level_tokens:
        first, last = scoring.level_tokens[level]
        return [*range(first, last + 1)]
    return sorted({sid[level] for sid in CODES})


@pytest.mark.parametrize("name", SCORINGS)
def test_every_sid_has_its_score(model: tuple[Path, Any], name: str) -> None:
    folder, made = model
    scoring, table = SCORINGS[name], SidTable(np.array(sorted(CODES), np.int32))
    found = Oracle(str(folder), table, scoring).beams(PROMPT, len(CODES))
    head, tail = ([token for token, _ in some] for some in Emitted.of(scoring))
    expected = {(*head, *sid, *tail): scored(made, sid, scoring) for sid in CODES}
    assert {tuple(tokens) for tokens, _ in found} == set(expected)
    for tokens, score in found:
        assert score == pytest.approx(expected[tuple(tokens)], abs=2e-5)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_a_width_beyond_the_catalog_gives_every_sid_once(model: tuple[Path, Any]) -> None:
    table = SidTable(np.array(sorted(CODES), np.int32))
    found = Oracle(str(model[0]), table, Scoring(tail=TAIL)).beams(PROMPT, len(CODES) + 5)
    assert len(found) == len({tuple(tokens) for tokens, _ in found}) == len(CODES)
    assert all(math.isfinite(score) for _, score in found)


def test_cases_get_its_beams_and_the_prompts_that_it_was_given(model: tuple[Path, Any]) -> None:
    table, seen = SidTable(np.array(sorted(CODES), np.int32)), list[int]()
    case = Case("history 1", CaseLine(history=["1"]), 4, ())
    oracle = Oracle(str(model[0]), table, Scoring())
    (made,) = referred(oracle, [case], [PROMPT], seen.append)
    assert made.said == CaseLine(history=["1"], prompt_ids=PROMPT) and len(made.beams) == 4
    assert seen == [1] and made.source == "history"
