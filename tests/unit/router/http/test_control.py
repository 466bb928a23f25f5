"""Probes, facts, workers, aborting, metrics: every route but /generate."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.job import Flush
from xgr_runtime import errors

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

    from xgr_runtime.catalog import Catalog


@pytest.mark.parametrize("path", ["/health", "/health_generate", "/liveness", "/readiness"])
def test_probes_are_well(server: Server, path: str) -> None:
    response = server.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_without_a_pair_only_liveness_is_well(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.pair = None
    dispatch.states[1] = replace(dispatch.states[1], usable=False, problem="other weights")
    for path in ("/health", "/health_generate", "/readiness"):
        response = server.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_workers")
        assert "ipc:///decode: other weights" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"
    assert server.get("/liveness").status_code == 200


def test_draining_is_healthy_but_not_ready(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.draining = True
    response = server.get("/readiness")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert server.get("/health").status_code == 200


def test_health_generate_runs_a_small_request(
    server: Server, dispatch: FakeDispatch, catalog: Catalog
) -> None:
    server.get("/health_generate")
    server.get("/health_generate")
    (job,) = dispatch.jobs  # for both
    assert job.probe and (job.width, job.results, job.rid[:7]) == (1, 1, "health-")
    assert job.tokens.tolist() == catalog.sids[0].tolist()


def test_health_generate_reports_failure(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.error = errors.WorkerLost("gone", "prefill")
    response = server.get("/health_generate")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unhealthy")
    assert "gone" in response.json()["error"]["message"]


def test_health_generate_has_a_deadline(server: Server, dispatch: FakeDispatch) -> None:
    server.set(health_timeout=0.05)
    dispatch.hang = True
    assert server.get("/health_generate").status_code == 503
    assert len(dispatch.cancelled) == 1


def together(server: Server, *asked: tuple[str, str]) -> list[httpx.Response]:
    """The answers to requests that all arrive before the first is answered."""

    async def exchange() -> list[httpx.Response]:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
            return await asyncio.gather(*(client.request(method, path) for method, path in asked))

    return asyncio.run(exchange())


@pytest.mark.parametrize("error", [None, errors.WorkerLost("gone", "prefill")], ids=["well", "ill"])
def test_probes_share_one_request(
    server: Server, dispatch: FakeDispatch, error: errors.RequestError | None
) -> None:
    """Anybody may probe, so probes by the dozen cost the workers no more than one."""
    dispatch.error = error
    answers = together(server, *[("GET", "/health_generate")] * 12)
    assert [answer.status_code for answer in answers] == [503 if error else 200] * 12
    assert len(dispatch.jobs) == 1


def test_a_prober_that_goes_away_leaves_the_others_theirs(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.hang = True

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://xgr") as client:
            first, second = (asyncio.create_task(client.get("/health_generate")) for _ in range(2))
            while not dispatch.tasks:
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait({first})
            (task,) = dispatch.tasks.values()
            task.set_result(None)
            return await asyncio.wait_for(second, 10)

    assert asyncio.run(exchange()).status_code == 200
    assert len(dispatch.jobs) == 1 and not dispatch.cancelled


@pytest.mark.parametrize(("method", "path"), [("GET", "/trace"), ("POST", "/flush_cache")], ids=str)
def test_what_costs_all_workers_is_done_one_at_a_time(server: Server, method: str, path: str) -> None:
    answers = together(server, *[(method, path)] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"]["code"] == "overloaded" and "retry-after" in refused.headers
    assert server.send(method, path).status_code == 200, "the next may"


def test_model_info(server: Server, catalog: Catalog) -> None:
    info = server.get("/model_info").json()
    assert info == {
        "model_path": "tiny",
        "served_model_name": "tiny",
        "is_generation": True,
        "vocab_size": 27,
        "depth": 3,
        "catalog_version": catalog.version,
        "catalog_items": 40,
        "catalog_leaves": 38,
    }


def test_server_info_gives_the_limits_in_force(server: Server, dispatch: FakeDispatch) -> None:
    info = server.get("/server_info").json()
    assert (info["version"], info["timeout_ms"], info["max_body_bytes"]) == ("0.1.0", 30_000, 4096)
    assert (info["max_beam_width"], info["default_beam_width"], info["max_prompt_tokens"]) == (20, 10, 30)
    assert (info["ready"], info["draining"], info["live_requests"]) == (True, False, 0)
    server.set(max_prompt_tokens=None)
    dispatch.pair = None
    assert server.get("/server_info").json()["max_prompt_tokens"] is None


def test_models(server: Server) -> None:
    models = server.get("/v1/models").json()
    (card,) = models["data"]
    assert (models["object"], card["object"], card["id"]) == ("list", "model", "tiny")
    assert card["max_model_len"] == 30


def test_workers_are_asked_again_only_where_a_caller_wants_that(
    server: Server, dispatch: FakeDispatch
) -> None:
    dispatch.fresh = dispatch.states[:1]
    assert len(server.get("/workers").json()["workers"]) == 2
    assert len(server.get("/workers", params={"fresh": "false"}).json()["workers"]) == 2
    assert len(server.get("/workers", params={"fresh": "true"}).json()["workers"]) == 1
    refused = server.get("/workers", params={"fresh": "perhaps"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "fresh")


def test_workers_tell_pages_of_requests_from_pages_of_caches(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.states.append(replace(dispatch.states[0], address="ipc:///new", hello=None, alive=False))
    prefill, decode, new = server.get("/workers").json()["workers"]
    assert [worker["role"] for worker in (prefill, decode, new)] == ["prefill", "decode", "prefill"]
    assert (decode["load"]["pages_used"], decode["load"]["pages_cached"]) == (12, 5)
    assert decode["load"]["counters"] == {"tokens": 7.0}
    assert (decode["incarnation"], decode["in_flight"], decode["catalogs"]) == ("5", 1, ["v"])
    assert (new["alive"], new["load"], new["model"]) == (False, None, None)


def test_a_worker_is_taken_in(server: Server, dispatch: FakeDispatch) -> None:
    added = server.send("POST", "/workers", json={"address": "tcp://127.0.0.1:7000", "role": "decode"})
    assert added.status_code == 200
    assert (added.json()["address"], added.json()["role"]) == ("tcp://127.0.0.1:7000", "decode")
    assert added.json() == server.get("/workers").json()["workers"][-1]


def test_why_workers_are_those_of_before(server: Server, dispatch: FakeDispatch) -> None:
    assert server.get("/workers").json()["problem"] == ""
    dispatch.discovery_problem = "the file is gone"
    assert server.get("/workers").json()["problem"] == "the file is gone"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"address": "refused", "role": "decode"}, "address"),
        ({"address": "", "role": "decode"}, "address"),
        ({"address": "ipc:///a/b"}, "role"),
        ({"address": "ipc:///a/b", "role": "router"}, "role"),
        ({"address": "ipc:///a/b", "role": "decode", "name": "d"}, "name"),
    ],
    ids=str,
)
def test_a_worker_that_cannot_be_is_refused(server: Server, body: dict[str, str], param: str) -> None:
    response = server.send("POST", "/workers", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["decode-0", "ipc:///decode", "ipc:%2F%2F%2Fdecode"])
def test_a_worker_is_removed_by_name_and_by_address(server: Server, name: str) -> None:
    removed = server.send("DELETE", f"/workers/{name}")
    assert removed.status_code == 202, removed.text
    assert (removed.json()["worker"], removed.json()["leaving"]) == ("decode-0", True)


def test_nobody_is_removed_under_another_name(server: Server) -> None:
    for name in ("decode-1", "", "decode-0/"):
        response = server.send("DELETE", f"/workers/{name}")
        assert (response.status_code, response.json()["error"]["param"]) == (404, "name")


def test_flush_cache_tells_what_became_of_every_worker(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.flushes = [Flush("ipc:///p", 5), Flush("ipc:///d", 7)]
    flushed = server.send("POST", "/flush_cache").json()
    assert (flushed["success"], flushed["flushed_pages"]) == (True, 12)
    dispatch.flushes[1] = Flush("ipc:///d", 0, "it is gone")
    flushed = server.send("POST", "/flush_cache").json()
    assert (flushed["success"], flushed["flushed_pages"], flushed["message"]) == (
        False,
        5,
        "ipc:///d: it is gone",
    )
    assert [worker["problem"] for worker in flushed["workers"]] == ["", "it is gone"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [({"rid": "none"}, 404, "rid"), ({}, 400, "rid"), ({"rid": 1}, 400, "rid"), ({"x": 1}, 400, "x")],
    ids=str,
)
def test_abort_refusals(server: Server, body: dict[str, Any], status: int, param: str) -> None:
    response = server.send("POST", "/abort_request", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def samples(server: Server) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of /metrics by name and sorted label values."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_requests(server: Server, dispatch: FakeDispatch) -> None:
    server.generate(input_ids=[1, 3])
    server.generate(input_ids=[1, 3, 11])
    server.generate(input_ids=[])
    server.get("/health")
    found = samples(server)
    assert found["xgr_requests_total", ("200",)] == 2
    assert found["xgr_requests_total", ("400",)] == 1
    assert found["xgr_request_seconds_count", ()] == 3
    assert found["xgr_prompt_tokens_total", ()] == 5
    assert found["xgr_requests_live", ()] == 0


def test_metrics_follow_the_workers(server: Server, dispatch: FakeDispatch) -> None:
    labels = ("decode", "decode-0", "ipc:///decode")  # already sorted
    found = samples(server)
    assert found["xgr_worker_pages_used", labels] == 12
    assert found["xgr_worker_pages_cached", labels] == 5
    assert found["xgr_worker_events_total", (*labels, "tokens")] == 7
    dispatch.states[1] = replace(dispatch.states[1], alive=False, hello=None)
    found = samples(server)
    assert found["xgr_worker_alive", ("", "", "ipc:///decode")] == 0
    assert ("xgr_worker_pages_used", labels) not in found


def test_a_pair_that_does_not_fit_is_told_apart(server: Server, dispatch: FakeDispatch) -> None:
    """Both work, but not with each other: the answer names the field and both values."""
    prefill, decode = dispatch.states
    assert decode.hello is not None
    other = msgspec.structs.replace(decode.hello.model, dtype="bfloat16")
    dispatch.states = [prefill, replace(decode, hello=msgspec.structs.replace(decode.hello, model=other))]
    dispatch.pair = None
    message = server.get("/readiness").json()["error"]["message"]
    assert "differ in dtype: prefill-0 has float32, decode-0 has bfloat16" in message
