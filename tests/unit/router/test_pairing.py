"""Which pair serves a request: a list of cases."""

import msgspec

from router.pairing import Candidate, choose_pair
from xgr_runtime.messages import ModelIdentity

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


def names(pair: object) -> tuple[str, str] | None:
    return (pair.prefill.name, pair.decode.name) if pair else None  # type: ignore[attr-defined]


def test_the_least_loaded_pair_wins_ties_by_name() -> None:
    assert names(choose_pair([P0, P1], [D1, D0], "v1")) == ("p1", "d0")


def test_workers_that_failed_this_request_come_last() -> None:
    assert names(choose_pair([P0, P1], [D0, D1], "v1", avoid={2, 11})) == ("p0", "d1")
    assert names(choose_pair([P1], [D0], "v1", avoid={2, 11})) == ("p1", "d0"), "better than nothing"


def test_a_pair_shares_one_model() -> None:
    assert names(choose_pair([P1, prefill("p2", 3, 70, OTHER)], [decode("d2", 13, 0, OTHER)], "v1")) == (
        "p2",
        "d2",
    )


def test_no_pair() -> None:
    assert choose_pair([], [D0], "v1") is None
    assert choose_pair([P0], [], "v1") is None
    assert choose_pair([P0], [decode("d2", 13, model=OTHER)], "v1") is None
    assert choose_pair([P0], [D0], "v2") is None
