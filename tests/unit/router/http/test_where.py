"""filters.where over HTTP: which leaves are asked for, which items are shown, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from made_catalogs import build_from_arrays

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server
    from tokenizers import Tokenizer

    from xgr_runtime.catalog import Catalog

ITEMS = 40


@pytest.fixture(scope="session")
def catalog(tokenizer: Tokenizer) -> Catalog:
    """Items 0 and 1, 2 and 3, ... share a SID; item n has n, and every third has a brand."""
    first = [tokenizer.get_vocab()[token] for token in ("<a_0>", "<b_0>", "<c_0>")]
    sids = [
        [first[0] + n // 2 // 4 % 4, first[1] + n // 2 // 16, first[2] + n // 2 % 4] for n in range(ITEMS)
    ]
    attributes = [{"n": n} | ({"brand": f"b{n % 2}"} if n % 3 == 0 else {}) for n in range(ITEMS)]
    return build_from_arrays(
        list(map(str, range(ITEMS))), sids, attributes=attributes, vocab_size=tokenizer.get_vocab_size()
    )


def shown(server: Server, **filters: object) -> set[str]:
    response = server.generate(history=["0"], sampling_params={"beam_width": 20}, filters=filters)
    assert response.status_code == 200, response.text
    return {item for result in response.json()["meta_info"]["beam_results"] for item in result["items"]}


def test_items_of_a_shared_sid_are_those_that_the_condition_leaves(
    server: Server, dispatch: FakeDispatch
) -> None:
    assert shown(server, where="n % 2 = 1 AND n < 10") == {"1", "3", "5", "7", "9"}
    (job,) = dispatch.jobs
    assert (job.where, job.live_leaves, job.allow, len(job.deny)) == ("n % 2 = 1 AND n < 10", 5, None, 0)


def test_with_denied_items_a_leaf_dies_once_nothing_on_it_matches(
    server: Server, dispatch: FakeDispatch
) -> None:
    assert shown(server, where="n % 2 = 1 AND n < 10", deny=["1", "2", "4"]) == {"3", "5", "7", "9"}
    assert (dispatch.jobs[0].live_leaves, len(dispatch.jobs[0].deny)) == (4, 1)


def test_with_allowed_items_the_leaves_say_it_all(server: Server, dispatch: FakeDispatch) -> None:
    assert shown(server, where="n < 10", allow=["1", "8", "9", "20"], deny=["8"]) == {"1", "9"}
    assert (dispatch.jobs[0].where, dispatch.jobs[0].live_leaves) == ("", 2)


def test_the_history_is_excluded_besides(server: Server) -> None:
    assert shown(server, where="brand = 'b0' AND n < 10", exclude_history=True) == {"6"}


def test_scores_are_of_candidates_that_the_condition_leaves(server: Server, dispatch: FakeDispatch) -> None:
    body = {
        "history": ["0"],
        "items": ["3", "2", "9", "11"],
        "filters": {"where": "n % 2 = 1", "deny": ["9"]},
    }
    found = server.send("POST", "/score", json=body).json()["candidates"]
    assert [one["why"] for one in found] == [None, "filtered", "filtered", None]
    (job,) = dispatch.jobs
    assert job.candidates is not None and (job.where, job.live_leaves) == ("n % 2 = 1", 2)


def test_nothing_is_left(server: Server, dispatch: FakeDispatch) -> None:
    assert shown(server, where="n < 0") == set()
    assert dispatch.jobs[0].live_leaves == 0


def test_a_condition_is_worked_out_once(server: Server) -> None:
    for _ in range(3):
        shown(server, where="n < 7")
    kept = server.catalogs.newest.filters
    assert (kept.misses, kept.hits) == (1, 2)


def test_a_condition_in_a_long_body_is_the_same(server: Server, dispatch: FakeDispatch) -> None:
    server.set(max_body_bytes=1 << 20)
    assert shown(server, where="n < 2", deny=["none"] * 20_000) == {"0", "1"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("price < 1", "filters.where at character 1: there is no column 'price'"),
        ("n < 'a'", "cannot be compared"),
        ("n <", "something is missing"),
        ("", "empty"),
        (5, "expected `str"),
        (["n < 1"], "expected `str"),
        ("n" * 20_000, "length <= 8192"),
    ],
    ids=["column", "type", "syntax", "empty", "number", "list", "length"],
)
@pytest.mark.parametrize("padding", [0, 20_000], ids=["short", "long"])
def test_a_bad_condition_is_400(
    server: Server, dispatch: FakeDispatch, where: object, said: str, padding: int
) -> None:
    server.set(max_body_bytes=1 << 20)
    response = server.generate(history=["0"], filters={"where": where, "deny": ["none"] * padding})
    assert response.status_code == 400 and not dispatch.jobs
    error = response.json()["error"]
    assert said in error["message"] and error["param"] == "filters.where"
