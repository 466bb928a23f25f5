"""Checkpoints of public projects' form, where the real data has them: their own scores of their own lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kits import KITS, laid_out
from scored_searches import Ranked, Searches, Sid, assert_ranked, read_cases

from xgr_runtime.catalog import Catalog, build_catalog
from xgr_runtime.model.choice import load_backend

pytestmark = pytest.mark.skipif(not KITS.is_dir(), reason="needs XGR_TEST_DATA with kits/")
# Their float32 log-softmax over 152,000 tokens is itself off by up to 1.3e-4.
TOLERANCE = 3e-4
USERS = 2  # of each kit; `xgr verify` asks for all


def searches_of(kit: str, index: Any, scoring: dict[str, Any], folder: Path) -> Searches:
    model = laid_out(kit, folder) / "model"
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "catalog.json").write_text(json.dumps({"scoring": scoring, "sid_format": "token_ids"}))
    catalog = build_catalog(folder / "index.json", model)
    return Searches(load_backend("transformers", model, "float32"), catalog, pages=256)


def theirs(case: dict[str, Any], catalog: Catalog) -> list[tuple[Sid | None, float]]:
    """Their beams as SIDs, None for what is no item, with the scores that they report."""
    first, known = len(catalog.scoring.emitted_head), set(map(tuple, catalog.sids.tolist()))
    found: list[tuple[Sid | None, float]] = []
    for tokens, score in case["beams"]:
        sid = tuple(tokens[first : first + catalog.depth])
        found.append((sid if sid in known else None, score))
    return found


def ours(searches: Searches, case: dict[str, Any], width: int) -> Ranked:
    """With sequence scores, which are what projects report."""
    catalog = searches.catalog
    by = catalog.emitted_tokens**catalog.scoring.length_penalty
    return [(sid, total / by) for sid, total in searches.ranked(case["prompt_ids"], width)]


def test_a_newline_and_an_end_token_are_scored(tmp_path: Path) -> None:
    """MiniOneRec: the list is that of its evaluation, rank by rank."""
    kit = KITS / "minionerec"
    index = json.loads((kit / "data/Industrial_and_Scientific.index.json").read_text())
    scoring = {"tail": ["\n", "<|endoftext|>"], "length_penalty": 0.0}
    searches = searches_of("minionerec", index, scoring, tmp_path)
    assert [f.token for f in searches.catalog.scoring.tail] == [198, 151643]
    for case in read_cases(kit / "cases.jsonl")[:USERS]:
        beams = theirs(case, searches.catalog)
        assert all(sid is not None for sid, _ in beams)
        assert_ranked(ours(searches, case, 50), [(sid, s) for sid, s in beams if sid], TOLERANCE)


LEGAL = {
    "lcrec": ("data/Instruments/Instruments.index.json", {"tail": ["</s>"]}, 20),
    "onerec-think": (
        "today/index.json",
        {"head": ["<|sid_begin|>"], "tail": ["<|sid_end|>", "<|im_end|>"]},
        10,
    ),
}


@pytest.mark.parametrize("kit", LEGAL)
def test_their_legal_beams_are_ours(kit: str, tmp_path: Path) -> None:
    """LC-Rec and OneRec-Think spend beams on what is no item; the others are in our list, in their order."""
    source, scoring, width = LEGAL[kit]
    index = json.loads((KITS / kit / source).read_bytes())
    if kit == "onerec-think":  # whose histories show the tokens around an SID, too
        index = {item: sid[1:-1] for item, sid in index.items()}
    searches = searches_of(kit, index, scoring, tmp_path)
    for case in read_cases(KITS / kit / "cases.jsonl")[:USERS]:
        legal = [(sid, score) for sid, score in theirs(case, searches.catalog) if sid is not None]
        got = ours(searches, case, width)
        wanted = dict(legal)
        assert len(got) == width and wanted
        assert_ranked([(sid, score) for sid, score in got if sid in wanted], legal, TOLERANCE)
