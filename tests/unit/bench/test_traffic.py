"""Requests: their lengths, widths and prompts, and that each answer is judged by the whole catalog."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from xgr_runtime.catalog import Catalog, load_catalog
from xgr_runtime.catalog.template import Templates
from xgr_runtime.cli.bench.judge import SidIndex
from xgr_runtime.cli.bench.settings import TrafficSettings, Widths
from xgr_runtime.cli.bench.traffic import Call, calls
from xgr_runtime.errors import ConfigError


def made(catalog: Catalog, count: int, **settings: object) -> list[Call]:
    return list(itertools.islice(calls(catalog, TrafficSettings(**settings)), count))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 30, 31])
def test_random_prompts_have_exactly_the_length(catalog: Catalog, tokens: int) -> None:
    assert {len(call.prompt) for call in made(catalog, 20, prompt_tokens=tokens)} == {tokens}


def test_no_random_prompt_comes_twice(catalog: Catalog) -> None:
    prompts = [tuple(call.prompt) for call in made(catalog, 500, prompt_tokens=60)]
    assert len(set(prompts)) == 500


def test_a_template_surrounds_the_items(catalog: Catalog) -> None:
    template = msgspec.structs.replace(catalog.template, prefix=(7, 8), separator=(9,), suffix=(6,))
    dressed = Catalog(catalog.version, 26, Templates.of(template), catalog.arrays)
    for kind in ("random", "sessions"):
        for call in made(dressed, 20, kind=kind, prompt_tokens=41):
            assert call.prompt[:2] == [7, 8] and call.prompt[-1] == 6 and call.prompt[5] == 9
            assert len(call.prompt) <= 41
    with pytest.raises(ConfigError, match="--prompt-tokens"):
        calls(dressed, TrafficSettings(prompt_tokens=3))


def test_sessions_send_prompts_that_begin_with_those_before(catalog: Catalog) -> None:
    sent: set[tuple[int, ...]] = set()
    known = 0
    for call in made(catalog, 1000, kind="sessions", prompt_tokens=240, new_items=2):
        prompt = tuple(call.prompt)
        known += prompt[:-6] in sent
        sent.add(prompt)
    # Nine of ten return, and one of five of these was cut: two items of an eighth of 80.
    assert 0.65 < known / 1000 < 0.9


def test_widths_come_in_the_shares_asked_for(catalog: Catalog) -> None:
    mix = Widths.parse("5:0.8,9:0.2")
    counts = Counter((call.width, call.n) for call in made(catalog, 4000, prompt_tokens=3, widths=mix))
    assert counts[5, 5] / 4000 == pytest.approx(0.8, abs=0.03)  # five deviations
    assert set(counts) == {(5, 5), (9, 9)}


@pytest.mark.parametrize("text", ["", "x", "5:x", "0", "5:0", "5:-1", "5:0.5,,9"])
def test_refuses_widths_that_say_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="--beam-width"):
        Widths.parse(text)


def test_histories_are_sent_as_the_deployment_would_make_them(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "histories.jsonl"
    rows = [["item-3", "item-7"], ["item-100"]]
    path.write_text("".join(json.dumps({"history": row}) + "\n" for row in rows))
    found = {tuple(call.prompt) for call in made(catalog, 10, kind="histories", histories=path)}
    expected = {tuple(catalog.prompt_tokens(catalog.leaves_of_items(row).tolist(), 99)[0]) for row in rows}
    assert found == expected

    path.write_text(json.dumps({"history": ["item-3", "gone"]}))
    with pytest.raises(ConfigError, match="'gone'"):
        made(catalog, 1, kind="histories", histories=path)


def test_every_sid_is_known_and_every_other_is_not(catalog: Catalog) -> None:
    index = SidIndex(catalog)
    real = [tuple(sid) for sid in catalog.sids.tolist()]
    assert index.unknown(real) == 0
    every = list(itertools.product(range(catalog.vocab_size), repeat=3))
    assert index.unknown(every) == len(every) - len(real)
    assert index.unknown([(0, 10), (0, 10, 20, 20), (), (0, 10, 10**12), (-1, 10, 20)]) == 5
    assert index.unknown([]) == 0


def test_sids_of_an_uneven_catalog_are_told_apart(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    sids = np.unique(draw.integers(0, 9, (150, 4)), axis=0).tolist()
    path = tmp_path / "index.json"
    path.write_text(json.dumps({str(number): sid for number, sid in enumerate(sids)}))
    (tmp_path / "catalog.json").write_text('{"sid_format": "token_ids"}')
    known = set(map(tuple, sids))
    others = [tuple(sid) for sid in draw.integers(0, 9, (2000, 4)).tolist()]
    unknown = SidIndex(load_catalog(path)).unknown(others)
    assert unknown == sum(sid not in known for sid in others) < 2000
