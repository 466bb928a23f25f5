"""Every route, asked by what /openapi.json says and by what it does not allow, keeps to that description."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from plain_publisher import PlainPublisher
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error, positive_data_acceptance

from router.http import make_app
from router.http.scoring import route
from router.query.models import Models
from xgr_runtime.catalog.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Server
    from schemathesis import Case

load_all_checks()
SETTINGS = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
FEW = settings(SETTINGS, max_examples=15)
# What a schema cannot say: that 1.0 is no integer, which items and columns there are, that n is at most
# beam_width, what is a catalog's file,
CHANGING = ("PUT /catalog", "POST /catalog/items", "POST /catalog/rollback", "PUT /filters/{name}")
# that /v1/completions has one prompt, or one in `xgr`, that words are more than spaces.
RANKING = ("POST /generate", "POST /score", "POST /v1/completions", "POST /v1/chat/completions")
MORE_RULES = {label: [positive_data_acceptance] for label in (*RANKING, *CHANGING, "GET /items")}


@pytest.fixture
def changing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainPublisher]:
    server.set(max_body_bytes=8 << 20)  # 413 is no answer to a body that is wrong
    monkeypatch.setattr(route, "MOST_BODY", 8 << 20)
    with Store(tmp_path / "store") as store:
        with store.writing():
            store.push(server.catalog)
        publisher = PlainPublisher(store, server.catalogs, server.catalog.vocab_size)
        server.app = make_app(server.dispatch, Models([server.model()]), server.settings, publisher, store)
        yield publisher


@pytest.mark.in_turns("mode")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_routes_keep_to_their_description(
    server: Server, subtests: pytest.Subtests, mode: GenerationMode, changing: PlainPublisher
) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for result in schema.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]
        if mode.is_negative and not (operation.body or operation.query):
            continue  # there is nothing to get wrong

        @(FEW if operation.path.startswith(("/catalog", "/filters")) else SETTINGS)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Case) -> None:  # type: ignore[type-arg]
            label = case.operation.label
            response, excluded = case.call(), list(MORE_RULES.get(label, []))
            if response.status_code == 504:  # it may allow itself one millisecond
                assert label in RANKING
                excluded.append(not_a_server_error)
            case.validate_response(response, excluded_checks=excluded)
            statuses[label][response.status_code] += 1

        with subtests.test(operation.label):
            check()
    if mode.is_negative:
        assert set(statuses) == {
            *RANKING,
            "POST /abort_request",
            "POST /workers",
            "GET /workers",
            "GET /trace",
            "GET /catalog/history",
            "GET /items",
            "GET /requests",
            *CHANGING,
        }
        assert all(seen[400] for seen in statuses.values())
        assert not statuses["POST /generate"][200]
    else:
        assert statuses["POST /generate"][200] > 10
        others = {status for label, seen in statuses.items() if label not in MORE_RULES for status in seen}
        assert {200, 404} <= others <= {200, 202, 404}
