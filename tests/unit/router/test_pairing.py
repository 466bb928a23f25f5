"""Which pair serves a request: a list of cases."""

from dataclasses import replace

import msgspec

from router.admission.pairing import Candidate, Pair, pairs_by_finish
from xgr_runtime.wire.messages import ModelIdentity

MODEL = ModelIdentity("hash", "float32", 4, 2, 32, 192, 1027, 1)
OTHER = msgspec.structs.replace(MODEL, weights_hash="other")


def prefill(name: str, incarnation: int, load: int = 0, model: ModelIdentity = MODEL) -> Candidate:
    return Candidate(name, incarnation, model, load)


def decode(
    name: str, incarnation: int, load: int = 0, model: ModelIdentity = MODEL, catalog: str = "v1"
) -> Candidate:
    return Candidate(name, incarnation, model, load, [catalog])


P0, P1 = prefill("p0", 1, load=100), prefill("p1", 2, load=50)
D0, D1 = decode("d0", 11, load=64), decode("d1", 12, load=64)


def names(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.prefill.name, pair.decode.name) for pair in pairs]


def test_the_pair_that_finishes_first_wins_whatever_its_load() -> None:
    seconds = {"p0": 1.0, "p1": 3.0, "d0": 2.0, "d1": 0.5}
    pairs = pairs_by_finish(
        [P0, P1], [D0, D1], "v1", finish=lambda pair: seconds[pair.prefill.name] + seconds[pair.decode.name]
    )
    assert names(pairs) == [("p0", "d1"), ("p0", "d0"), ("p1", "d1"), ("p1", "d0")]


def test_ties_go_to_the_least_loaded_and_then_by_name() -> None:
    assert names(pairs_by_finish([P0, P1], [D1, D0], "v1")) == [
        ("p1", "d0"),
        ("p1", "d1"),
        ("p0", "d0"),
        ("p0", "d1"),
    ]


def test_among_equals_the_one_that_holds_the_prompt_is_taken() -> None:
    knows = replace(P0, reuse=51)  # P1 has 50 tokens less under way
    assert names(pairs_by_finish([P1, knows], [D0], "v1"))[0] == ("p0", "d0")
    holds = replace(D1, reuse=1)
    assert names(pairs_by_finish([P1], [D0, holds], "v1"))[0] == ("p1", "d1")


def test_workers_that_failed_this_request_come_last() -> None:
    slow = {"p0": 9.0, "d1": 9.0}
    pairs = pairs_by_finish(
        [P0, P1],
        [D0, D1],
        "v1",
        {2, 11},
        lambda pair: slow.get(pair.prefill.name, 0.0) + slow.get(pair.decode.name, 0.0),
    )
    assert names(pairs)[0] == ("p0", "d1") and names(pairs)[-1] == ("p1", "d0")
    assert names(pairs_by_finish([P1], [D0], "v1", avoid={2, 11})) == [("p1", "d0")], "better than nothing"


def test_a_pair_shares_one_model() -> None:
    assert names(pairs_by_finish([P1, prefill("p2", 3, 70, OTHER)], [decode("d2", 13, 0, OTHER)], "v1")) == [
        ("p2", "d2")
    ]


def test_who_reads_a_memory_in_place_has_one_partner() -> None:
    p0, p1 = replace(P0, memory=7), replace(P1, memory=8)
    assert names(pairs_by_finish([p0, p1, prefill("p2", 3)], [replace(D0, memory=8)], "v1")) == [("p1", "d0")]
    assert len(pairs_by_finish([p0, p1], [D0], "v1")) == 2, "others take prompts from anywhere"


def test_no_pair() -> None:
    assert not pairs_by_finish([], [D0], "v1")
    assert not pairs_by_finish([P0], [], "v1")
    assert not pairs_by_finish([P0], [decode("d2", 13, model=OTHER)], "v1")
    assert not pairs_by_finish([P0], [D0], "v2")
