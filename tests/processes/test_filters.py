"""A filtered answer is that of a catalog without the items: filters act inside the beam, not after it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from items import Items
from oracle import Oracle
from sameness import assert_identical, assert_items, assert_same

from xgr_kernels.trie import MAX_DENIED, ScoreMode
from xgr_runtime.client import XgrClient


@dataclass(frozen=True)
class Draw:
    """How many random items a filter names; a float is a share of the catalog."""

    allow: int | float | None
    deny: int | float
    width: int = 12

    def __str__(self) -> str:
        return f"allow={self.allow}-deny={self.deny}-W={self.width}"


DRAWS = [
    Draw(None, 1),
    Draw(None, 40),
    Draw(None, MAX_DENIED),
    Draw(None, MAX_DENIED + 1),  # a bitmap from here on
    Draw(None, 0.9),
    Draw(1, 0),
    Draw(7, 3),
    Draw(60, 20),
    Draw(0.6, 30),
    Draw(0.9, 0.7),
    Draw(0.5, 0.5, width=1),
    Draw(20, 0.3, width=50),  # more beams than leaves
]


def pick(draw: random.Random, names: Sequence[str], wanted: int | float) -> list[str]:
    count = wanted if isinstance(wanted, int) else int(wanted * len(names))
    return draw.sample(list(names), min(count, len(names)))


@pytest.mark.in_turns("case")
@pytest.mark.parametrize("mode", ["vocab", "legal"])
@pytest.mark.parametrize("case", DRAWS, ids=str)
def test_random_sets_equal_a_smaller_catalog(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]], case: Draw, mode: ScoreMode
) -> None:
    draw = random.Random(f"{case} {mode}")
    names = sorted(items.sids)
    prompt = draw.choice(prompts)
    allow = None if case.allow is None else pick(draw, names, case.allow)
    deny = pick(draw, names, case.deny)
    left = (items if allow is None else items.only(set(allow))).without(set(deny))
    answer = client.generate(input_ids=prompt, beam_width=case.width, score_mode=mode, allow=allow, deny=deny)
    expected = oracle.beams(prompt, left, case.width, mode) if left.sids else []
    assert_same(answer, expected)
    assert_items(answer, left)


@pytest.mark.parametrize("width", [10, 90], ids="W={}".format)
def test_best_items_denied_again_and_again(
    client: XgrClient, oracle: Oracle, items: Items, prompts: list[list[int]], width: int
) -> None:
    """Random sets seldom hit the top of a list; here every answer's own items are denied next.

    Four rounds of 90 pass the length at which a deny list becomes a bitmap.
    """
    denied: set[str] = set()
    for _ in range(4):
        answer = client.generate(input_ids=prompts[5], beam_width=width, deny=sorted(denied))
        left = items.without(denied)
        assert_same(answer, oracle.beams(prompts[5], left, width))
        assert_items(answer, left)
        found = {item for result in answer.meta_info.beam_results for item in result.items}
        assert found and not found & denied
        denied |= found


def test_nothing_allowed(client: XgrClient, prompts: list[list[int]], items: Items) -> None:
    some = next(iter(items.sids))
    for allow, deny in (([], []), (["no such item"], []), ([some], [some])):
        answer = client.generate(input_ids=prompts[0], beam_width=5, allow=allow, deny=deny)
        assert (answer.meta_info.beam_results, answer.output_ids, answer.items) == ([], [], [])
        assert answer.meta_info.sequence_score is None


def test_everything_denied(client: XgrClient, prompts: list[list[int]], items: Items) -> None:
    answer = client.generate(input_ids=prompts[0], beam_width=5, deny=list(items.sids))
    assert answer.meta_info.beam_results == []


def test_empty_deny_list_and_no_filter_are_one(client: XgrClient, prompts: list[list[int]]) -> None:
    plain = client.generate(input_ids=prompts[3], beam_width=9)
    assert_identical(client.generate(input_ids=prompts[3], beam_width=9, deny=[]), plain)
    assert len(plain.meta_info.beam_results) == 9


def test_unknown_items_are_ignored_and_counted(
    client: XgrClient, prompts: list[list[int]], items: Items
) -> None:
    names = list(items.sids)[:30]
    known = client.generate(input_ids=prompts[1], beam_width=9, allow=names, deny=names[:3])
    answer = client.generate(
        input_ids=prompts[1], beam_width=9, allow=["?", *names, "??"], deny=[*names[:3], "nobody"]
    )
    assert_identical(answer, known)
    counted = answer.meta_info.unknown_items
    assert (counted.allow, counted.deny) == (2, 1)


def test_shared_sid_lives_until_its_last_item_is_denied(
    client: XgrClient, prompts: list[list[int]], items: Items
) -> None:
    sid, owners = max(items.by_sid.items(), key=lambda pair: (len(pair[1]), pair[0]))
    first, *rest = sorted(owners)
    assert rest, "the catalog has items that share a SID"
    others = sorted(set(items.sids) - owners)[:5]
    for denied, left in (([], owners), ([first], set(rest)), (sorted(owners), set())):
        answer = client.generate(input_ids=prompts[2], beam_width=20, allow=[*owners, *others], deny=denied)
        found = {tuple(r.output_ids): set(r.items) for r in answer.meta_info.beam_results}
        assert found.get(sid, set()) == left
        assert found.keys() == items.only({*left, *others}).by_sid.keys()
    one = client.generate(input_ids=prompts[2], beam_width=4, allow=[first])
    assert [r.items for r in one.meta_info.beam_results] == [[first]]


def test_exclude_history(
    client: XgrClient, oracle: Oracle, items: Items, users: list[list[str]], prompts: list[list[int]]
) -> None:
    history, prompt = users[7], prompts[7]
    repeats = client.generate(history=history, beam_width=400)
    seen = {item for r in repeats.meta_info.beam_results for item in r.items} & set(history)
    assert seen, "without the filter, items of the history come back"
    answer = client.generate(history=history, beam_width=25, exclude_history=True, deny=["nobody"])
    left = items.without(set(history))
    assert answer.meta_info.prompt_tokens == len(prompt)
    assert_same(answer, oracle.beams(prompt, left, 25))
    assert_items(answer, left)
    listed = client.generate(history=history, beam_width=25, deny=history)
    assert_identical(answer, listed)
