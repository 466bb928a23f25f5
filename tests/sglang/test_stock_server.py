"""A stock SGLang server as the prefill side of our decode workers: right answers, and how it can fail."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import psutil
import pytest
from cluster import Cluster
from freed import assert_all_freed
from items import Items
from oracle import Oracle
from references import Reference, check_all
from sameness import assert_identical
from shared_templates import deployment_of
from stock_server import StockServer
from until import until

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import DeadlineExceeded, NoWorkers, WorkerLost
from xgr_runtime.launcher.deployment import Deployment
from xgr_runtime.wire.answers import Answer

CHUNK = 16  # tokens that SGLang prefills at a time: most prompts arrive in several pieces


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[StockServer]:
    """One for the whole module; the first test that kills it starts it again."""
    with StockServer(checkpoint, {"chunked-prefill-size": str(CHUNK)}) as running:
        yield running


@pytest.fixture(scope="module")
def deployment(server: StockServer, checkpoint: Path, catalog_source: Path) -> Iterator[Deployment]:
    """Router and decode worker as `xgr serve --prefill-workers 0 --sglang-prefill URL` starts them."""
    config = ServeConfig(
        model_path=str(checkpoint),
        catalog=str(catalog_source),
        port=0,
        kv_bytes=64 << 20,
        log_level="WARNING",
        prefill_workers=0,
        sglang_prefill=[server.url],
        threads=1,  # as the clusters here, whose template it shares
    )
    with deployment_of(config) as running:
        yield running


@pytest.fixture
def client(deployment: Deployment) -> Iterator[XgrClient]:
    """A client; after each test nothing may be held, by the SGLang server neither."""
    with XgrClient(deployment.url, timeout=120.0) as open_client:
        yield open_client
        assert len(assert_all_freed(open_client)) == 2


@pytest.fixture(scope="module")
def fifty(references: list[Reference]) -> list[Reference]:
    """Fifty of the stored requests, evenly over both widths; the generated ones are fewer."""
    return references[:: max(1, len(references) // 50)][:50]


def ask(client: XgrClient, reference: Reference, timeout_ms: int = 60_000) -> Answer:
    return client.generate(input_ids=reference.prompt, beam_width=reference.width, timeout_ms=timeout_ms)


def test_one_by_one(client: XgrClient, fifty: list[Reference], oracle: Oracle, items: Items) -> None:
    """Most prompts are longer than a chunk: their KV comes in several pieces."""
    assert sum(len(reference.prompt) > CHUNK for reference in fifty) > len(fifty) // 4
    check_all([ask(client, reference) for reference in fifty], fifty, oracle, items)


def test_sixteen_at_a_time(
    client: XgrClient, threads: ThreadPoolExecutor, fifty: list[Reference], oracle: Oracle, items: Items
) -> None:
    """Packed batches, and prompts that its radix cache knows from the test before."""
    answers = list(threads.map(lambda reference: ask(client, reference), fifty))
    assert all(answer.meta_info.attempts == 1 for answer in answers), "nothing failed on the way"
    check_all(answers, fifty, oracle, items)


def test_what_both_caches_know_is_neither_computed_nor_sent(
    client: XgrClient, fifty: list[Reference], oracle: Oracle, items: Items
) -> None:
    """The decode worker starts from KV alone, of which it holds the beginning."""
    longest = max(fifty, key=lambda reference: len(reference.prompt))
    assert client.flush_cache().success
    first = ask(client, longest)
    assert first.meta_info.cached_tokens == 0
    before = sent(client)
    again = ask(client, longest)
    known = (len(longest.prompt) - 1) // 16 * 16
    assert again.meta_info.cached_tokens == len(longest.prompt) - 1, "SGLang's pages are of one token"
    after = sent(client)
    assert after["cached_tokens"] - before.get("cached_tokens", 0.0) == known > 0
    model = client.workers()[0].model
    assert model is not None
    assert after["kv_bytes"] - before["kv_bytes"] == (len(longest.prompt) - known) * model.token_bytes
    check_all([first, again], [longest, longest], oracle, items)
    assert client.flush_cache().flushed_pages > 0
    assert ask(client, longest).meta_info.cached_tokens == 0


def sent(client: XgrClient) -> dict[str, float]:
    """Counters of the decode worker."""
    return next(w.load.counters for w in assert_all_freed(client) if w.role == "decode" and w.load)


def test_a_prompt_of_one_token(client: XgrClient, items: Items, oracle: Oracle) -> None:
    """The first level then comes from no shared KV at all."""
    answer = client.generate(input_ids=[5], beam_width=8)
    check_all([answer], [Reference([5], oracle.hugging_face([5], items, 8), "")], oracle, items)


def test_it_introduces_itself(client: XgrClient, server: StockServer) -> None:
    (prefill,) = [worker for worker in client.workers() if worker.role == "prefill"]
    assert prefill.address == server.url and prefill.usable
    assert prefill.worker == f"sglang-{server.port}"
    assert prefill.load is not None and prefill.load.pages_total == 8192


def test_deadlines_pass_everywhere(
    client: XgrClient, threads: ThreadPoolExecutor, fifty: list[Reference]
) -> None:
    undisturbed = ask(client, fifty[0])

    def hurried(number: int) -> Answer | None:
        try:
            return ask(client, fifty[number % len(fifty)], timeout_ms=5 + 9 * number)
        except DeadlineExceeded:
            return None

    answers = list(threads.map(hurried, range(48)))
    assert None in answers, "the first deadlines are too short for anybody"
    assert_all_freed(client)
    assert_identical(ask(client, fifty[0]), undisturbed)


def test_a_request_of_somebody_else_is_refused(client: XgrClient, server: StockServer) -> None:
    """Without a ticket there is no decode worker to send KV to; SGLang goes on serving ours."""
    for host in ("127.0.0.1", "xgr1.nonsense"):
        body = {"input_ids": [1, 2], "bootstrap_host": host, "bootstrap_room": 7}
        response = httpx.post(f"{server.url}/generate", json=body, timeout=30)
        assert response.status_code == 500, response.text
        assert "bootstrap_host" in response.text


def test_a_prompt_that_is_too_long_is_refused(client: XgrClient, server: StockServer) -> None:
    """By the router, which knows the limit of the server."""
    response = client.http.post("/generate", json={"input_ids": [1] * 8192})
    assert response.status_code == 400 and response.json()["error"]["param"] == "input_ids"


def test_a_server_that_hangs_counts_as_lost(
    server: StockServer, checkpoint: Path, catalog_source: Path, fifty: list[Reference]
) -> None:
    """Its HTTP process lives on: the answer to the heartbeat comes from the scheduler, which does not."""
    cluster = Cluster(checkpoint, catalog_source, 0, 1, sglang=[server.url], silence=6.0)
    with cluster, cluster.client() as client, ThreadPoolExecutor(1) as pool:
        undisturbed = ask(client, fifty[0])
        scheduler = server.scheduler()
        scheduler.send_signal(signal.SIGSTOP)
        try:
            answer = pool.submit(ask, client, fifty[0])
            with pytest.raises(WorkerLost, match="no answer"):
                answer.result(30)
            assert [worker.alive for worker in client.workers(fresh=True) if worker.role == "prefill"] == [
                False
            ]
        finally:
            scheduler.send_signal(signal.SIGCONT)
        until(client.ready, "the router takes the server back", 30)
        assert_identical(ask(client, fifty[0]), undisturbed)
        assert len(cluster.settled()) == 2


def flushed(server: StockServer) -> bool:
    """Whether it has emptied its cache, which it does while it is idle."""
    return httpx.post(f"{server.url}/flush_cache", timeout=30).status_code == 200


def answered(client: XgrClient, reference: Reference) -> bool:
    """Whether there are workers for it: ranks that share few cores may be late for a heartbeat at first."""
    try:
        ask(client, reference)
    except NoWorkers:
        return False
    return True


def test_killed_in_the_middle_of_a_hand_over_and_back_with_two_ranks(
    server: StockServer,
    checkpoint: Path,
    catalog_source: Path,
    fifty: list[Reference],
    oracle: Oracle,
    items: Items,
) -> None:
    """Without another prefill worker: an error that names the stage, nothing held, and it may come back.

    Each of the ranks then computes half of the KV heads; the decode worker gets them all, in several pieces.
    """
    longest = sorted(fifty, key=lambda reference: len(reference.prompt))[-8:]
    prompt = longest[-1].prompt
    with (
        Cluster(
            checkpoint, catalog_source, 0, 1, proxies=True, sglang=[server.url], cache_bytes=0
        ) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(4) as pool,
    ):
        check_all([ask(client, longest[-1])], longest[-1:], oracle, items)
        until(lambda: flushed(server), "it is through with that, and forgets it", 30)
        (proxy,) = cluster.proxies
        proxy.hold_after(2)
        answer = pool.submit(client.generate, input_ids=prompt, beam_width=20, timeout_ms=60_000)
        assert proxy.held.wait(30) and proxy.held_chunk is not None
        assert proxy.held_chunk.sequence > 0, "the hold is inside a transfer"
        family = server.processes()
        killed = time.monotonic()
        server.kill()
        with pytest.raises(WorkerLost) as lost:
            answer.result(30)
        assert lost.value.param == "prefill", "the error names the stage"
        with pytest.raises(NoWorkers):
            client.generate(input_ids=prompt, beam_width=20)
        assert time.monotonic() - killed < 30, "nobody waits for the 60 s deadline"
        assert not any(process.is_running() for process in family)
        assert len(cluster.settled()) == 1, "the decode worker is free again"
        proxy.release()
        server.start(ranks=2)
        until(lambda: answered(client, longest[-1]), "the router takes the server back", 30)
        answers = list(pool.map(lambda reference: ask(client, reference), longest))
        check_all(answers, longest, oracle, items)
        assert len(cluster.settled()) == 2


def test_killed_with_another_prefill_worker(
    server: StockServer, checkpoint: Path, catalog_source: Path, fifty: list[Reference]
) -> None:
    """Every request is answered: those that were at the server are tried again elsewhere.

    Only the main process is killed here; SGLang's own watch has to end the others.
    """
    with (
        Cluster(checkpoint, catalog_source, 1, 1, sglang=[server.url]) as cluster,
        cluster.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        undisturbed = [ask(client, reference) for reference in fifty[:8]]
        scheduler = server.scheduler()
        scheduler.suspend()
        answers = [pool.submit(ask, client, reference) for reference in fifty[:8]]
        wait(answers, timeout=30, return_when=FIRST_COMPLETED)
        waiting = cluster.in_flight(f"sglang-{server.port}")
        assert 0 < waiting < 8, "some wait for the server, the others are our own worker's"
        family = server.processes()
        family[0].kill()
        # The scheduler could still hand over a cached prompt before it notices, and nobody would be retried.
        until(lambda: not cluster.in_flight(f"sglang-{server.port}"), "its requests went elsewhere", 30)
        scheduler.resume()
        results = [answer.result(60) for answer in answers]
        for result, expected in zip(results, undisturbed, strict=True):
            assert_identical(result, expected)
        assert sum(result.meta_info.attempts > 1 for result in results) == waiting
        assert len(cluster.settled()) == 2
    assert not psutil.wait_procs(family, timeout=20)[1], "nothing is left of the server"
