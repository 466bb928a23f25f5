"""Every answer over HTTP equals Hugging Face's: one by one, and in the middle of other traffic."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from items import Items
from oracle import Oracle
from references import Reference, check_all
from sameness import assert_identical, difference, ranked

from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import Answer

Ask = Callable[[], Answer]


@pytest.fixture(scope="module")
def alone(client: XgrClient, references: list[Reference]) -> list[Answer]:
    """The answers when nothing else is asked."""
    return [client.generate(input_ids=r.prompt, beam_width=r.width) for r in references]


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
    return [partial(client.generate, **query) for query in queries]


@pytest.mark.parametrize("width", [2, 8, 20], ids="W={}".format)
def test_the_oracle_equals_hugging_face(
    oracle: Oracle, items: Items, prompts: list[list[int]], width: int
) -> None:
    """The oracle stands in for `generate` in the other modules: here it is held against it."""
    for prompt in prompts[2:12:4]:
        theirs = oracle.hugging_face(prompt, items, width)
        assert len(theirs) == width
        assert not (found := difference(oracle.beams(prompt, items, width), theirs)), found
