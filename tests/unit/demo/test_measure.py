"""Reading answers, counting hits and the line to paste, against a server made of a function."""

import json
import shlex
from io import StringIO

import httpx
import pytest
from rich.console import Console

from xgr_runtime.cli.demo import measure, show
from xgr_runtime.cli.demo.measure import Item, Recommendation, User

ITEMS = {f"p{number}": Item(f"thing {number}", popularity=number) for number in range(15)}
USERS = [User("0", ["p0", "p1"], "p2"), User("1", ["p3"], "p14"), User("2", ["p4"], "p9")]


def server(request: httpx.Request) -> httpx.Response:
    """Recommends the number after the newest item, and then p9, which shares its SID with p8."""
    newest = int(json.loads(request.content)["history"][-1][1:])
    found = [{"items": [f"p{newest + 1}"], "meta_info": {"cumulative_logprob": -1.0, "sequence_score": -0.3}}]
    found += [{"items": ["p9", "p8"], "meta_info": {"cumulative_logprob": -2.0, "sequence_score": -0.6}}]
    return httpx.Response(200, json={"meta_info": {"beam_results": found}})


@pytest.fixture
def client() -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(server), base_url="http://demo")


def test_items_of_one_sid_follow_each_other_with_its_score(client: httpx.Client) -> None:
    expected = [Recommendation("p2", -1.0), Recommendation("p9", -2.0), Recommendation("p8", -2.0)]
    assert measure.recommend(client, USERS[0]) == expected


def test_a_list_ends_at_ten_items_even_within_a_sid() -> None:
    results = [
        {"items": [f"{sid}{twin}" for twin in "abc"], "meta_info": {"cumulative_logprob": 0.0}}
        for sid in "1234"
    ]
    found = " ".join(found.item for found in measure.ranked_items(results))
    assert found == "1a 1b 1c 2a 2b 2c 3a 3b 3c 4a"


def test_hit_rate_counts_users_whose_next_item_is_listed(client: httpx.Client) -> None:
    assert measure.hit_rate(client, USERS) == pytest.approx(2 / 3)


def test_popularity_recommends_the_same_ten_to_everyone() -> None:
    assert measure.most_popular(ITEMS) == [f"p{number}" for number in range(14, 4, -1)]
    assert measure.popularity_hit_rate(ITEMS, USERS) == pytest.approx(2 / 3)


def test_a_refused_request_is_an_error() -> None:
    refusing = httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(503)), base_url="http://demo"
    )
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        measure.recommend(refusing, USERS[0])


def test_curl_line_survives_the_shell() -> None:
    words = shlex.split(show.curl_line("http://127.0.0.1:30000", USERS[0]))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:30000/generate"]
    assert json.loads(words[-1]) == measure.request_body(USERS[0])


def test_lists_show_titles_and_what_was_bought_next() -> None:
    console = Console(file=StringIO(), width=100)
    show.recommendations(console, USERS[0], [Recommendation("p2", -1.25)], ITEMS)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "thing 1\n" in printed
    assert "-1.25" in printed
    assert "bought next: thing 2 (in the list)" in printed
