"""Which pair serves a request: a list of cases."""

import random

import msgspec

from router.admission.pairing import Candidate, Pair, contenders, pairs_by_finish
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
    knows = P0._replace(reuse=51)  # P1 has 50 tokens less under way
    assert names(pairs_by_finish([P1, knows], [D0], "v1"))[0] == ("p0", "d0")
    holds = D1._replace(reuse=1)
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
    p0, p1 = P0._replace(memory=7), P1._replace(memory=8)
    assert names(pairs_by_finish([p0, p1, prefill("p2", 3)], [D0._replace(memory=8)], "v1")) == [("p1", "d0")]
    assert len(pairs_by_finish([p0, p1], [D0], "v1")) == 2, "others take prompts from anywhere"


def test_no_pair() -> None:
    assert not pairs_by_finish([], [D0], "v1")
    assert not pairs_by_finish([P0], [], "v1")
    assert not pairs_by_finish([P0], [decode("d2", 13, model=OTHER)], "v1")
    assert not pairs_by_finish([P0], [D0], "v2")


def test_the_best_pairs_of_the_contenders_are_the_best_of_all() -> None:
    fewest = 0
    for seed in range(300):
        draw = random.Random(seed)
        prompts, searches = fleet(draw, "prefill"), fleet(draw, "decode")
        avoid = {w.incarnation for w in [*prompts, *searches] if draw.random() < 0.1}
        values = (
            [0.0, 0.0004, 0.001, 0.0017, 0.3] if draw.random() < 0.7 else [draw.random() for _ in range(9)]
        )
        own = {w.incarnation: draw.choice(values) for w in [*prompts, *searches]}
        ahead = {w.incarnation: draw.choice(values) for w in [*prompts, *searches]}

        def finish(pair: Pair, own: dict[int, float] = own, ahead: dict[int, float] = ahead) -> float:
            p, d = pair.prefill.incarnation, pair.decode.incarnation
            ready = ahead[p] + own[p]
            return own[d] + (9.0 if pair.one_device else max(ready, ahead[d]))

        times: dict[int, tuple[float, float]] = {
            w.incarnation: (ahead[w.incarnation] + own[w.incarnation], 0.0) for w in prompts
        }
        times.update({w.incarnation: (own[w.incarnation], ahead[w.incarnation]) for w in searches})
        some = contenders(prompts, searches, "v1", avoid, times, 4)
        expected = pairs_by_finish(prompts, searches, "v1", avoid, finish)[:4]
        assert pairs_by_finish(*some, "v1", avoid, finish)[:4] == expected, seed
        fewest += sum(map(len, some)) < len(prompts) + len(searches)
    assert fewest > 100, "many are left out"


def test_of_many_idle_workers_four_are_looked_at() -> None:
    prompts = [prefill(f"p{number:02}", 100 + number) for number in range(64)]
    searches = [decode(f"d{number:02}", 200 + number) for number in range(64)]
    times: dict[int, tuple[float, float]] = {w.incarnation: (0.1, 0.0) for w in [*prompts, *searches]}
    assert contenders(prompts, searches, "v1", (), times, 4) == (prompts[:4], searches[:4])


def fleet(draw: random.Random, role: str) -> list[Candidate]:
    """Some workers that differ in whatever decides between them."""
    return [
        Candidate(
            f"{role}-{number}",
            number + (100 if role == "prefill" else 200),
            MODEL if draw.random() < 0.9 else OTHER,
            draw.choice([0, 0, 3, 7]),
            ["v1"] if draw.random() < 0.9 else ["v0"],
            reuse=draw.choice([0, 0, 3]),
            turns=f"gpu{draw.randrange(3)}" if draw.random() < 0.1 else "",
            memory=(number if role == "prefill" or draw.random() < 0.1 else 0),
        )
        for number in range(draw.randrange(1, 20))
    ]
