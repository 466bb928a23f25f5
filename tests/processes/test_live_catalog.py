"""A catalog that changes while it is served: every answer is of the version that it names, and none fails."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalog_traffic import Operations, State, check, traffic
from cluster import Cluster
from items import Items, read_tokenizer
from oracle import Oracle
from sameness import assert_same
from until import until


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live") / "store"


@pytest.fixture(scope="module")
def cluster(checkpoint: Path, catalog_source: Path, store: Path) -> Iterator[Cluster]:
    with Cluster(
        checkpoint, catalog_source, prefill=2, decode=2, catalog_store=str(store), catalog_patience=5.0
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def asked(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Long ones, of which some item is there in every version."""
    long = [row for row in rows if len(row["history"]) >= 8] or rows
    return [row["history"][-12:] for row in long[-40:]]


@pytest.fixture(scope="module")
def operations(cluster: Cluster, items: Items) -> Operations:
    """One for all tests here, as the store goes on from one to the next."""
    version = status(cluster.url)["current"]
    return Operations(cluster.url, {version: State(dict(items.sids))}, version, random.Random(7))


def status(url: str) -> Any:
    response = httpx.get(f"{url}/catalog", timeout=30.0)
    assert response.status_code == 200, response.text
    return response.json()


def write_source(path: Path, state: State, checkpoint: Path) -> Path:
    spell = read_tokenizer(checkpoint).id_to_token
    rows = ({"item": item, "sid": [spell(token) for token in sid]} for item, sid in state.sids.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def push(operations: Operations, store: Path, checkpoint: Path) -> None:
    """Four fifths of the items, as a file below the store."""
    names = sorted(operations.state.sids)
    kept = operations.draw.sample(names, len(names) * 4 // 5)
    state = State({name: operations.state.sids[name] for name in kept})
    file = write_source(store / "pushed.jsonl", state, checkpoint)
    operations.done(operations.post("/catalog", {"path": file.name}, "PUT"), state)


def roll_back(operations: Operations, version: str) -> None:
    operations.done(operations.post("/catalog/rollback", {"version": version}), operations.states[version])


def show_all(operations: Operations) -> None:
    """Nothing is hidden any more."""
    version = operations.post("/catalog/items", {"show": sorted(operations.state.hidden)})
    operations.done(version, State(operations.state.sids))


def forget(operations: Operations) -> None:
    """All versions but the first and the current one: requests that come later name none of them."""
    first = next(iter(operations.states))
    operations.states = {version: operations.states[version] for version in (first, operations.version)}
    operations.order.clear()


def changed_under_load(
    cluster: Cluster,
    operations: Operations,
    asked: list[list[str]],
    store: Path,
    checkpoint: Path,
    batches: int,
) -> set[str]:
    """So many, a push and the way back from it, and the versions that answers named meanwhile."""
    with traffic(cluster.url, asked) as sent:
        for number in range(batches):
            operations.edit()
            if number == batches // 2:
                before = operations.version
                push(operations, store, checkpoint)
            if number == 3 * batches // 4:
                roll_back(operations, before)
            time.sleep(0.02)
        show_all(operations)
    assert not [one.error for one in sent if one.error]
    return check(sent, operations)


@pytest.mark.timeout(1800)  # with --long it takes eight minutes
def test_every_answer_is_of_the_version_it_names(
    cluster: Cluster,
    operations: Operations,
    asked: list[list[str]],
    store: Path,
    checkpoint: Path,
    oracle: Oracle,
    prompts: list[list[int]],
    request: pytest.FixtureRequest,
) -> None:
    """With `--long` 2,000 batches, 25 pushes and 50 ways back."""
    first, named = operations.version, set()
    for _ in range(25 if request.config.getoption("--long") else 1):
        named |= changed_under_load(
            cluster, operations, asked, store, checkpoint, 80 if request.config.getoption("--long") else 16
        )
        roll_back(operations, first)  # with all items that requests name
        forget(operations)
    operations.edit()
    assert len(named) > 3, "the load was there while the catalog changed"
    with cluster.client() as client:
        answer = client.generate(input_ids=prompts[0], beam_width=16, n=16)
        assert answer.meta_info.catalog_version == operations.version
        assert_same(answer, oracle.beams(prompts[0], operations.state.items, 16))
        until(lambda: all(len(w.catalogs) <= 2 for w in client.workers()), "old versions are let go of")
    found = status(cluster.url)
    assert found["current"] == found["newest"] == operations.version and not found["behind"]
    assert sum(version["leases"] for version in found["versions"]) == 0
    metrics = httpx.get(f"{cluster.url}/metrics").text
    for kind in ("edit", "push", "rollback"):
        assert f'xgr_catalog_visible_seconds_count{{kind="{kind}"}}' in metrics
    assert "xgr_catalog_broken_chains_total 0.0" in metrics


def test_files_that_nobody_needs_leave_memory(
    cluster: Cluster, operations: Operations, store: Path, checkpoint: Path
) -> None:
    """Of six files that came into use one after the other, no process keeps more than the last two."""
    for _ in range(3):
        before = operations.version
        push(operations, store, checkpoint)
        roll_back(operations, before)
    operations.edit()
    for name in ("router", "decode-0", "decode-1"):
        until(lambda name=name: len(mapped_catalogs(cluster.pid(name))) <= 2, f"{name} lets go of files")  # type: ignore[misc]


def mapped_catalogs(pid: int) -> set[str]:
    """The files of catalogs, by inode, that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:" in line and "catalog" in line}


def followed(router: str, operations: Operations) -> float:
    """Seconds after an edit by the other router until this one knows of it."""
    operations.edit()
    began = time.monotonic()
    until(lambda: status(router)["newest"] == operations.version, "it follows", 30.0)
    return time.monotonic() - began


@pytest.mark.alone  # a second is a promise, on a machine that has time
def test_a_second_router_follows_and_writes(
    cluster: Cluster, operations: Operations, asked: list[list[str]]
) -> None:
    other = cluster.start_router("router-1")
    try:
        took = [followed(other, operations)]
        mine, operations.url = operations.url, other
        with traffic(mine, asked, threads=1) as sent:
            took += [followed(mine, operations) for _ in range(5)]
        assert min(took) < 1.0, took
        operations.url = mine
        operations.edit()
        assert not [one.error for one in sent if one.error]
        assert {
            one.answer.meta_info.catalog_version for one in sent if one.answer
        } <= operations.states.keys()
    finally:
        cluster.kill("router-1")


def test_a_worker_joins_with_what_is_current(
    cluster: Cluster, operations: Operations, store: Path, checkpoint: Path
) -> None:
    """It begins with the first file, and takes the pushed one in parts."""
    push(operations, store, checkpoint)
    operations.edit()
    cluster._of_decode["kv_transfer"] = "frames"
    (address,) = cluster.beside("decode-2")
    with cluster.client() as client:
        client.add_worker(address, "decode")

        def joined() -> bool:
            worker = next(w for w in client.workers() if w.address == address)
            return worker.usable and operations.version in worker.catalogs

        until(joined, "the worker has the current version")

        def pulled() -> float:
            load = next(w.load for w in client.workers() if w.address == address)
            return load.counters.get("catalog_bytes", 0) if load is not None else 0

        until(lambda: pulled() > 50_000, "it came in parts")
        operations.edit()
        assert joined()
        client.remove_worker(address)
        until(lambda: len(client.workers()) == 4, "it has left")
    cluster.kill("decode-2")
    del cluster._of_decode["kv_transfer"]


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_lose_nothing_that_was_acknowledged(
    cluster: Cluster, operations: Operations, asked: list[list[str]], seed: int
) -> None:
    draw = random.Random(seed)
    with traffic(cluster.url, asked, threads=1) as sent:
        victim = f"decode-{seed % 2}"
        timer = threading.Timer(draw.uniform(0, 0.2), cluster.kill, [victim])
        timer.start()
        for _ in range(4):
            operations.edit()
        timer.join()
        cluster.restart(victim)
        until(lambda: not status(cluster.url)["behind"], "it has caught up", 30.0)
    assert not [one.error for one in sent if one.error], "a worker's death costs no request"
    check(sent, operations)
    body, after = operations.batch()
    port = int(cluster.url.rsplit(":", 1)[1])
    timer = threading.Timer(draw.uniform(0, 0.03), cluster.signal, ["router", signal.SIGKILL])
    timer.start()
    with contextlib.suppress(httpx.HTTPError):
        operations.done(operations.post("/catalog/items", body), after)
    timer.join()
    cluster.start_router("router", port)
    current = status(cluster.url)["current"]
    if current != operations.version:
        operations.done(current, after)
    with cluster.client() as client:
        until(lambda: all(worker.usable for worker in client.workers()), "all are usable again")
    with traffic(cluster.url, asked, threads=1) as sent:
        operations.edit()
        time.sleep(0.2)
    assert not [one.error for one in sent if one.error]
    check(sent, operations)
