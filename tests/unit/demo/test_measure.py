"""Reading answers, counting hits and the line to paste, against a server made of a function."""

import json
import shlex
from collections.abc import Callable
from io import StringIO

import httpx
import msgspec
import pytest
from rich.console import Console

from xgr_runtime.cli.demo import measure, show
from xgr_runtime.cli.demo.measure import Item, Recommendation, User
from xgr_runtime.client import XgrClient
from xgr_runtime.errors import NoWorkers
from xgr_runtime.wire.answers import (
    Answer,
    BeamMeta,
    BeamResult,
    ErrorBody,
    ErrorDetail,
    FinishReason,
    MetaInfo,
    UnknownItems,
)
from xgr_runtime.wire.messages import Timing

ITEMS = {f"p{number}": Item(f"thing {number}", popularity=number) for number in range(15)}
USERS = [User("0", ["p0", "p1"], "p2"), User("1", ["p3"], "p14"), User("2", ["p4"], "p9")]


def result(items: list[str], score: float) -> BeamResult:
    return BeamResult([1, 2, 3], items, BeamMeta(score / 3, score))


def server(request: httpx.Request) -> httpx.Response:
    """Recommends the number after the newest item, and then p9, which shares its SID with p8."""
    newest = int(json.loads(request.content)["history"][-1][1:])
    found = [result([f"p{newest + 1}"], -1.0), result(["p9", "p8"], -2.0)]
    timing = Timing(0.0, 0.0, 0.0, 0.0, 0.0)
    end, unknown = FinishReason("length", 3), UnknownItems(0, 0, 0)
    meta = MetaInfo("r", end, 4, 0, 3, 0.1, -0.3, -1.0, "v", 1, timing, 0, unknown, found)
    answer = Answer("r", "", found[0].output_ids, found[0].items, meta)
    return httpx.Response(200, content=msgspec.json.encode(answer))


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> XgrClient:
    return XgrClient("http://demo", transport=httpx.MockTransport(answer))


@pytest.fixture
def client() -> XgrClient:
    return client_of(server)


def test_items_of_one_sid_follow_each_other_with_its_score(client: XgrClient) -> None:
    expected = [Recommendation("p2", -1.0), Recommendation("p9", -2.0), Recommendation("p8", -2.0)]
    assert measure.recommend(client, USERS[0]) == expected


def test_a_list_ends_at_ten_items_even_within_a_sid() -> None:
    results = [result([f"{sid}{twin}" for twin in "abc"], 0.0) for sid in "1234"]
    found = " ".join(found.item for found in measure.ranked_items(results))
    assert found == "1a 1b 1c 2a 2b 2c 3a 3b 3c 4a"


def test_hit_rate_counts_users_whose_next_item_is_listed(client: XgrClient) -> None:
    assert measure.hit_rate(client, USERS) == pytest.approx(2 / 3)


def test_popularity_recommends_the_same_ten_to_everyone() -> None:
    assert measure.most_popular(ITEMS) == [f"p{number}" for number in range(14, 4, -1)]
    assert measure.popularity_hit_rate(ITEMS, USERS) == pytest.approx(2 / 3)


def test_a_refused_request_is_an_error() -> None:
    detail = ErrorDetail("no pair of workers is ready", "overloaded_error", None, "no_workers")
    body = msgspec.json.encode(ErrorBody(detail, "r", True))
    with pytest.raises(NoWorkers, match="no pair"):
        measure.recommend(client_of(lambda _: httpx.Response(503, content=body)), USERS[0])


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
