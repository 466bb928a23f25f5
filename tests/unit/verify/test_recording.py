"""The snippet of docs/bring-your-model.md, as it stands there, writes cases that `xgr verify` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build

from xgr_runtime.cli.verify.cases import read_cases

DOCS = Path(__file__).parents[3] / "docs" / "bring-your-model.md"
PADDED = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
SETTINGS = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 2, "pad_token_id": 0}


@pytest.fixture
def record() -> Any:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.S)
    names: dict[str, Any] = {}
    exec(snippet, names)
    return names["record"]


def test_every_prompt_is_a_case(record: Any, tmp_path: Path) -> None:
    model: Any = build("qwen2", 2).eval()
    plain = model.generate(PADDED, attention_mask=MASK, do_sample=False, **SETTINGS)
    record(model, tmp_path / "cases.jsonl", [["1", "2"], ["3"]])
    made = model.generate(PADDED, attention_mask=MASK, do_sample=False, **SETTINGS)
    assert torch.equal(made, plain), "the script gets what it got before"
    first, second = read_cases(tmp_path / "cases.jsonl", "beams", None)
    assert (first.said.prompt_ids, second.said.prompt_ids) == ([5, 6], [7, 8, 9, 10])
    assert (first.said.history, second.said.history) == (["1", "2"], ["3"])
    assert [beam for beam, _ in second.beams] == plain[3:, 4:].tolist() and second.width == 3
    scores = [score for _, score in first.beams]
    assert all(isinstance(score, float) for score in scores) and scores == sorted(scores, reverse=True)  # type: ignore[type-var]


def test_a_script_that_wants_everything_gets_it(record: Any, tmp_path: Path) -> None:
    model: Any = build("qwen2", 2).eval()
    record(model, tmp_path / "cases.jsonl")
    for _ in range(2):
        made = model.generate(
            PADDED[1:], do_sample=False, return_dict_in_generate=True, output_scores=True, **SETTINGS
        )
    cases = read_cases(tmp_path / "cases.jsonl", "beams", None)
    assert len(cases) == 2 and cases[0].said.history is None
    expected = list(zip(made.sequences[:, 4:].tolist(), made.sequences_scores.tolist(), strict=True))
    assert [(tokens, pytest.approx(score)) for tokens, score in cases[1].beams] == expected
