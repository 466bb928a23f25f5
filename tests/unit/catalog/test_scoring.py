"""Forced tokens and how scores are taken: what catalog.json says, what a search descends, what is refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_catalogs import build_from_arrays, leaf_of_sid
from tokenizers import Tokenizer, decoders

from xgr_runtime.catalog import Catalog, Forced, Scoring, build_catalog, load_catalog, verify_file
from xgr_runtime.catalog.file import Header, write_file
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from pathlib import Path

    from xgr_runtime.catalog.trie import Levels

SIDS = [["<a_1>", "<b_1>", "<c_1>"], ["<a_1>", "<b_2>", "<c_7>"], ["<a_3>", "<b_2>", "<c_7>"]]
IDS = [[4, 44, 84], [4, 45, 90], [6, 45, 90]]


def build(folder: Path, scoring: Any, checkpoint: Path | None = None, **beside: Any) -> Catalog:
    sids = SIDS if checkpoint else IDS
    (folder / "index.json").write_text(json.dumps({f"i{n}": sid for n, sid in enumerate(sids)}))
    fields = beside if scoring is None else {"scoring": scoring, **beside}
    (folder / "catalog.json").write_text(json.dumps(fields))
    return build_catalog(folder / "index.json", checkpoint, None if checkpoint else 123)


def paths(levels: Levels) -> list[tuple[int, ...]]:
    """What each leaf's search emits, walked down the trie as selection does."""
    trie = levels.trie
    found = []
    for leaf in range(trie.leaves):
        nodes = [int(np.searchsorted(lo, leaf, side="right")) - 1 if len(lo) else leaf for lo in trie.lo]
        assert all(len(lo) == len(tokens) + 1 for lo, tokens in zip(trie.lo[:-1], trie.tokens, strict=False))
        found.append(tuple(int(tokens[node]) for tokens, node in zip(trie.tokens, nodes, strict=True)))
    assert not len(trie.lo[-1])
    return found


forced = st.lists(st.builds(Forced, st.integers(0, 200), st.booleans()), max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(head=forced, tail=forced, seed=st.integers(0, 99), depth=st.integers(1, 4), leaves=st.integers(1, 30))
def test_a_search_emits_head_sid_and_tail(
    head: tuple[Forced, ...], tail: tuple[Forced, ...], seed: int, depth: int, leaves: int
) -> None:
    sids = np.random.default_rng(seed).integers(0, 5, (leaves, depth))
    scoring = Scoring(head, tail)
    catalog = build_from_arrays([str(n) for n in range(leaves)], sids, scoring=scoring)
    before = [one.token for one in scoring.emitted_head]
    behind = [one.token for one in scoring.emitted_tail]
    whole, relative = catalog.scored_levels, catalog.relative_levels
    assert paths(whole) == [(*before, *sid, *behind) for sid in catalog.sids.tolist()]
    assert paths(relative) == [(*before, *sid) for sid in catalog.sids.tolist()]
    assert catalog.emitted_tokens == whole.trie.depth == relative.trie.depth + len(behind)
    emitted = [*scoring.emitted_head, *[Forced(-1)] * depth, *scoring.emitted_tail]
    assert whole.silent == {level for level, one in enumerate(emitted) if not one.scored}
    assert relative.silent == set(range(len(before)))
    assert [*scoring.prompt_head, *before] == [one.token for one in head]
    assert not any(one.scored for one in head[: len(scoring.prompt_head)])
    assert not scoring.emitted_tail or scoring.emitted_tail[-1].scored


def test_tokens_by_name_and_what_is_not_scored(tmp_path: Path, checkpoint: Path) -> None:
    scoring = {
        "head": [{"token": "<bos>", "scored": False}, "<a_0>"],
        "tail": [{"token": 0, "scored": False}, "<unk>", {"token": 0, "scored": False}],
        "length_penalty": 0,
        "score_mode": "level",
        "repetition_penalty": 1.2,
        "level_tokens": [["<a_0>", "<a_39>"], ["<b_0>", "<b_39>"], [83, 122]],
    }
    catalog = build(tmp_path, scoring, checkpoint, suffix=[5])
    assert catalog.scoring == Scoring(
        (Forced(1, False), Forced(3)),
        (Forced(0, False), Forced(2), Forced(0, False)),
        0.0,
        "level",
        1.2,
        ((3, 42), (43, 82), (83, 122)),
    )
    assert catalog.scoring.prompt_head == (1,)
    assert paths(catalog.scored_levels) == [(3, *sid, 0, 2) for sid in IDS]
    assert [(codes[0], codes[-1], len(codes)) for codes in catalog.codebooks] == [
        (3, 42, 40),
        (43, 82, 40),
        (83, 122, 40),
    ]


def test_codebooks_are_the_tokens_in_use_where_none_are_declared(tmp_path: Path) -> None:
    assert [codes.tolist() for codes in build(tmp_path, {}).codebooks] == [[4, 6], [44, 45], [84, 90]]


@pytest.mark.parametrize("text", ["\n", " ", " saw"])
def test_text_of_one_token_is_found_however_it_is_spelt(text: str, tmp_path: Path, words: Path) -> None:
    """Byte-level tokenizers have other names for a newline and a blank."""
    shutil.copytree(words, tmp_path / "c")
    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "c" / "tokenizer.json"))
    (expected,) = tokenizer.encode(text).ids
    catalog = build(tmp_path, {"tail": [text]}, tmp_path / "c")
    assert catalog.scoring.tail == (Forced(expected),)
    with pytest.raises(CatalogError, match="no single token"):
        build(tmp_path, {"tail": [f"{text}xyz"]}, tmp_path / "c")


def test_the_built_file_keeps_it_and_what_is_served_is_mapped(tmp_path: Path) -> None:
    catalog = build(tmp_path, {"head": [7], "tail": [8, {"token": 9, "scored": False}, 7]})
    catalog.save(tmp_path / "built.xgr")
    read = verify_file(tmp_path / "built.xgr")
    assert (read.version, read.scoring) == (catalog.version, catalog.scoring)
    assert paths(read.scored_levels) == paths(catalog.scored_levels)
    trie = read.scored_levels.trie
    for array in (*trie.tokens[-3:], *trie.lo[-4:-1]):
        assert any(array is stored for stored in read.arrays.values()), "a copy for every process"
    assert leaf_of_sid(read, IDS[1]) == 1
    assert read.sids.tolist() == IDS


def test_it_is_part_of_the_version(tmp_path: Path) -> None:
    said = [
        {},
        {"tail": [7]},
        {"tail": [{"token": 7, "scored": False}]},
        {"length_penalty": 0},
        {"head": [7]},
    ]
    assert len({build(tmp_path, scoring).version for scoring in said}) == len(said)
    assert build(tmp_path, None).version == build(tmp_path, {}).version


@pytest.mark.parametrize("which", ["tail.0", "leaf_lo"])
def test_arrays_that_contradict_are_found(which: str, tmp_path: Path) -> None:
    catalog = build(tmp_path, {"tail": [7]})
    arrays = {name: array.copy() for name, array in catalog.arrays.items()}
    arrays[which][1] += 1
    write_file(tmp_path / "c", Header(catalog.version, 123, catalog.templates, (), catalog.scoring), arrays)
    with pytest.raises(CatalogError, match=f"{which}.*build it again"):
        load_catalog(tmp_path / "c")
    write_file(tmp_path / "c", Header(catalog.version, 123, catalog.templates, ()), catalog.arrays)
    with pytest.raises(CatalogError, match="arrays are missing or unknown"):
        load_catalog(tmp_path / "c")


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown field": ({"tails": [7]}, "tails"),
    "no object": ([7], "scoring"),
    "unknown token": ({"tail": ["<nothing>"]}, "tail.*<nothing>.*no single token"),
    "text of two tokens": ({"tail": ["<a_1><a_2>"]}, "no single token"),
    "out of the vocabulary": ({"head": [123]}, "head.*out of vocabulary"),
    "below it": ({"tail": [-1]}, "out of vocabulary"),
    "a number with a fraction": ({"tail": [1.5]}, "tail"),
    "a word for true": ({"tail": [{"token": 7, "scored": "yes"}]}, "scored"),
    "a misspelt part": ({"tail": [{"tok": 7}]}, "tok"),
    "too many levels": ({"tail": [7, 8] * 5}, "13 tokens: they may have 12"),
    "no penalty at all": ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    "a reward": ({"repetition_penalty": -1.0}, "above 0"),
    "a huge penalty": ({"repetition_penalty": 10.5}, "at most 10"),
    "a huge length penalty": ({"length_penalty": 11}, "within -10 and 10"),
    "another mode": ({"score_mode": "given"}, "score_mode"),
    "two levels of three": ({"level_tokens": [[3, 42], [43, 82]]}, "2 levels, SIDs have 3"),
    "a level that is too small": (
        {"level_tokens": [[3, 5], [43, 82], [83, 122]]},
        "3 to 5 of level 0, SIDs have 4 to 6",
    ),
    "the wrong way round": ({"level_tokens": [[42, 3], [43, 82], [83, 122]]}, "first and last"),
    "levels that overlap": (
        {"level_tokens": [[3, 42], [3, 82], [83, 122]]},
        "\\[3, 42\\] and \\[3, 82\\], which share tokens",
    ),
    "a level within another": ({"level_tokens": [[3, 122], [43, 82], [83, 122]]}, "which share tokens"),
    "a level of one number": ({"level_tokens": [3, 43, 83]}, "level_tokens"),
    "a level's token that is unknown": ({"level_tokens": [["<a_0>", "<a_40>"]]}, "level_tokens.*<a_40>"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_to_change(name: str, tmp_path: Path, checkpoint: Path) -> None:
    scoring, words = REFUSED[name]
    with pytest.raises(CatalogError, match=words) as caught:
        build(tmp_path, scoring, checkpoint)
    assert "catalog.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sids, scoring, said",
    [
        ([[3, 8], [4, 8]], {"tail": [8]}, "all SIDs end in \\[8\\]"),
        ([[3, 8, 9], [4, 8, 9]], {"tail": [8, 9]}, "all SIDs end in \\[8, 9\\]"),
        ([[3, 8, 9], [4, 8, 9]], {"tail": [9, 7]}, "all SIDs end in \\[9\\]"),
        ([[8, 3], [8, 4]], {"head": [7, 8]}, "all SIDs begin with \\[8\\]"),
        ([[8, 3], [8, 4]], {"head": [{"token": 8, "scored": False}]}, "all SIDs begin with \\[8\\]"),
    ],
)
def test_a_token_that_sids_have_already_is_not_scored_twice(
    sids: list[list[int]], scoring: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "index.json").write_text(json.dumps({f"i{n}": sid for n, sid in enumerate(sids)}))
    (tmp_path / "catalog.json").write_text(json.dumps({"scoring": scoring, "sid_format": "token_ids"}))
    with pytest.raises(CatalogError, match=said):
        build_catalog(tmp_path / "index.json", None, 50)


@pytest.mark.parametrize("where", ["head", "tail"])
@pytest.mark.parametrize("token", ["<a_1>", "<a_3>", "<b_2>", "<c_7>", 90])
def test_a_token_by_which_sids_differ_stands_around_none(
    where: str, token: str | int, tmp_path: Path, checkpoint: Path
) -> None:
    with pytest.raises(CatalogError, match=f"{where} holds the token .*: name what stands around SIDs"):
        build(tmp_path, {where: [{"token": token, "scored": False}]}, checkpoint)


def test_a_prompt_that_ends_in_the_head_already(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="prompts already end in \\[7\\]"):
        build(tmp_path, {"head": [7, 8]}, suffix=[5, 7])
    build(tmp_path, {"head": [7, 8]}, suffix=[7, 5])
