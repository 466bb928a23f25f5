"""A pair that shares memory loses one of its two: refusals that say so, and the pair is back by itself."""

import json
from collections.abc import Iterator
from signal import SIGKILL

import pytest
from census import take
from crowd import Question, make_prompts, undisturbed
from fault_table import FaultTable
from fleet import Fleet
from instruments import TestData
from trial import Trial
from until import until

REFUSALS = ("no_workers", "worker_lost", "crashed_workers", "overloaded")


@pytest.fixture(scope="module")
def pair(test_data: TestData) -> Iterator[Fleet]:
    with Fleet(test_data.model, test_data.catalog, 1, 1, layout="colocated", cache_bytes=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def asked(pair: Fleet, test_data: TestData) -> list[Question]:
    vocabulary = int(json.loads((test_data.model / "config.json").read_text())["vocab_size"])
    with pair.client() as client:
        return undisturbed(client, make_prompts(vocabulary, 6, 200, seed=8), (8, 32))


@pytest.mark.in_turns("role")
@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_a_pair_that_shares_memory_is_back_by_itself(
    pair: Fleet, asked: list[Question], table: FaultTable, role: str
) -> None:
    """The owner of the memory takes its reader along."""
    with Trial(f"kill -9 {role}, colocated", pair, asked, take(pair), table, REFUSALS) as it:
        before = pair.incarnations()
        ended = before if role == "prefill" else {"decode-0": before["decode-0"]}
        with it.crowd(seed=7, callers=3):
            until(lambda: it.row.tally.correct, "an answer")
            pair.signal(f"{role}-0", SIGKILL)
            it.fault({name: incarnation for name, incarnation in ended.items() if name != "router-0"})
            it.wait_answered(60)
