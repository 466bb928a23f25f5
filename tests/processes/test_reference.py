"""Every answer over HTTP equals Hugging Face's: one by one, and in the middle of other traffic."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from items import Items
from oracle import Oracle, Ranked
from sameness import TIE, assert_identical, difference, ranked

from xgr_runtime.answer import Answer
from xgr_runtime.client import XgrClient

Ask = Callable[[], Answer]


@dataclass(frozen=True)
class Reference:
    """A prompt, the best SIDs by Hugging Face's `generate`, and the item that the user took next."""

    prompt: list[int]
    beams: Ranked
    target: str

    @property
    def width(self) -> int:
        return len(self.beams)


@pytest.fixture(scope="session")
def references(
    catalog_source: Path,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    items: Items,
    oracle: Oracle,
) -> list[Reference]:
    """The files beside the real catalog (520 requests), else a few computed now."""
    files = sorted(catalog_source.parent.glob("reference_w*.jsonl"))
    stored = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    if stored:
        return [
            Reference(
                row["prompt_ids"], [(tuple(sid), score) for sid, score in row["beams"]], str(row["target"])
            )
            for row in stored
        ]
    return [
        Reference(prompt, oracle.hugging_face(prompt, items, width), str(row["next"]))
        for row, prompt in zip(rows, prompts, strict=True)
        for width in (8, 20)
    ]


@pytest.fixture(scope="module")
def alone(client: XgrClient, references: list[Reference]) -> list[Answer]:
    """The answers when nothing else is asked."""
    return [client.generate(input_ids=r.prompt, beam_width=r.width) for r in references]


def check_all(answers: list[Answer], references: list[Reference], oracle: Oracle, items: Items) -> None:
    """All the same; at most two may differ, and only because a cut fell between two beams that tie."""
    differing = [
        (reference, found)
        for answer, reference in zip(answers, references, strict=True)
        if (found := difference(ranked(answer), reference.beams))
    ]
    assert len(differing) <= 2, [found for _, found in differing]
    for reference, found in differing:
        assert oracle.closest_cut(reference.prompt, items, reference.width) <= TIE, found


@pytest.mark.timeout(1200)
def test_one_by_one(alone: list[Answer], references: list[Reference], oracle: Oracle, items: Items) -> None:
    check_all(alone, references, oracle, items)


def test_hit_rate_at_10(alone: list[Answer], references: list[Reference], items: Items) -> None:
    targets = [items.sids[reference.target] for reference in references]
    ours = [target in [sid for sid, _ in ranked(a)[:10]] for a, target in zip(alone, targets, strict=True)]
    theirs = [
        target in [sid for sid, _ in r.beams[:10]] for r, target in zip(references, targets, strict=True)
    ]
    assert sum(ours) == sum(theirs)


@pytest.mark.timeout(1200)
def test_sixteen_at_a_time_among_other_widths_and_filters(
    client: XgrClient,
    threads: ThreadPoolExecutor,
    references: list[Reference],
    users: list[list[str]],
    oracle: Oracle,
    items: Items,
) -> None:
    others = other_traffic(client, users, list(items.sids))
    undisturbed = [ask() for ask in others]
    between = max(1, len(references) // (2 * len(others)))
    wanted: list[Future[Answer]] = []
    mixed: list[Future[Answer]] = []
    for number, r in enumerate(references):
        wanted.append(threads.submit(client.generate, input_ids=r.prompt, beam_width=r.width))
        if number % between == 0:
            mixed.append(threads.submit(others[len(mixed) % len(others)]))
    check_all([future.result() for future in wanted], references, oracle, items)
    assert len(mixed) >= len(others), "every other request was in flight"
    for number, future in enumerate(mixed):
        assert_identical(future.result(), undisturbed[number % len(others)])


def other_traffic(client: XgrClient, users: list[list[str]], names: list[str]) -> list[Ask]:
    """Requests of widths 1, 7 and 300, without filters and with each kind of them."""
    filters: list[dict[str, Any]] = [
        {},
        {"deny": names[::3]},
        {"allow": names[::5]},
        {"allow": names[::2], "deny": names[:60], "exclude_history": True},
    ]
    queries = [
        {"history": users[(3 * i + j) % len(users)], "beam_width": width, **extra}
        for i, width in enumerate((1, 7, 300))
        for j, extra in enumerate(filters)
    ]
    return [lambda query=query: client.generate(**query) for query in queries]


@pytest.mark.parametrize("width", [2, 8, 20], ids="W={}".format)
def test_the_oracle_equals_hugging_face(
    oracle: Oracle, items: Items, prompts: list[list[int]], width: int
) -> None:
    """The oracle stands in for `generate` in the other modules: here it is held against it."""
    for prompt in prompts[2:12:4]:
        theirs = oracle.hugging_face(prompt, items, width)
        assert len(theirs) == width
        assert not (found := difference(oracle.beams(prompt, items, width), theirs)), found
