"""`xgr ray`: what it starts answers as one machine does; with --long also when nodes end."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import RayCluster
from sameness import assert_identical
from until import PATIENCE, until

from xgr_runtime.client import XgrClient
from xgr_runtime.wire.answers import Answer

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'xgr-runtime[ray]'", allow_module_level=True)

WIDTH = 32
SHOP = """
model_path = "{model}"
catalog = "{catalog}"
port = 0
threads = 1
kv_bytes = 67108864
log_level = "WARNING"

[cluster]
name = "shop"
"""
_WORKER = re.compile(r"(\S+)-(\d+) +(ready|starting|over) +node (\S+)")
# Of Ray's own settings: no actor processes before they are wanted, and patience with a lost head.
QUIET: dict[str, Any] = {
    "prestart_worker_first_driver": False,
    "enable_worker_prestart": False,
    "gcs_rpc_server_reconnect_timeout_s": 3600,
}


@contextlib.contextmanager
def shop(nodes: RayCluster, path: Path, **cluster: object) -> Iterator[str]:
    """The URL of a deployment, which is ended before the cluster is. `cluster`: more of its [cluster]."""
    more = "".join(f"{name} = {value}\n" for name, value in cluster.items())
    path.write_text(path.read_text() + more)
    done = nodes.run("up", "--config", str(path))
    assert done.returncode == 0, done.stderr
    try:
        yield done.stdout.split()[-1]
    finally:
        done = nodes.run("down", "--config", str(path))
    assert done.returncode == 0, done.stderr
    assert "shop has ended" in done.stdout


@pytest.fixture
def settings(checkpoint: Path, catalog_source: Path, tmp_path: Path) -> Path:
    """A serve.toml whose last table is [cluster]."""
    path = tmp_path / "serve.toml"
    path.write_text(SHOP.format(model=checkpoint, catalog=catalog_source))
    return path


@pytest.fixture
def long(request: pytest.FixtureRequest) -> None:
    """Nodes take minutes to fill on two cores."""
    if not request.config.getoption("--long"):
        pytest.skip("minutes: --long runs it")


def places(nodes: RayCluster) -> dict[str, str]:
    """Node of each process that is ready, the first digits of its id."""
    done = nodes.run("status", "--name", "shop")
    found = _WORKER.findall(done.stdout)
    return {f"{role}-{number}": node for role, number, state, node in found if state == "ready"}


class Load:
    """Callers that ask one prompt after another until the block ends; each answer is compared."""

    def __init__(
        self, url: str, prompts: list[list[int]], expected: list[Answer], callers: int = 3, pause: float = 0.0
    ) -> None:
        self.answered = 0
        self.url, self._prompts, self._expected, self._callers = url, prompts, expected, callers
        self._over = threading.Event()
        self._pause = pause  # seconds between a caller's requests

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(self._callers)
        self._running = [self._pool.submit(self._ask, number) for number in range(self._callers)]
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        with self._pool:
            for running in self._running:
                running.result()  # what went wrong with a request is raised here

    def goes_on(self) -> None:
        """Until six more are answered, or one is not."""
        goal = self.answered + 6
        until(lambda: self.answered >= goal or any(one.done() for one in self._running), "answers go on")
        for running in self._running:
            if running.done():
                running.result()

    def _ask(self, number: int) -> None:
        with XgrClient(self.url, timeout=PATIENCE) as client:
            while not self._over.is_set():
                one = number % len(self._prompts)
                answer = client.generate(
                    input_ids=self._prompts[one], beam_width=WIDTH, timeout_ms=int(PATIENCE * 1000)
                )
                assert_identical(answer, self._expected[one])
                self.answered += 1
                number += 1
                self._over.wait(self._pause)


@pytest.fixture(scope="module")
def expected(client: XgrClient, prompts: list[list[int]]) -> list[Answer]:
    """Of a deployment on one machine, without Ray."""
    return [client.generate(input_ids=prompt, beam_width=WIDTH, timeout_ms=60_000) for prompt in prompts]


def test_it_answers_as_one_machine_does(
    settings: Path, prompts: list[list[int]], expected: list[Answer]
) -> None:
    with RayCluster(more=0, cpus=3, **QUIET) as nodes:
        with shop(nodes, settings) as url:
            with XgrClient(url, timeout=PATIENCE) as asked:
                for prompt, one in zip(prompts, expected, strict=True):
                    answer = asked.generate(input_ids=prompt, beam_width=WIDTH, timeout_ms=60_000)
                    assert_identical(answer, one)
                assert all("#" not in worker.address or worker.usable for worker in asked.workers())
            again = nodes.run("up", "--config", str(settings))
            assert again.returncode == 2 and "shop is on this cluster already" in again.stderr
            assert set(places(nodes)) == {"router-0", "prefill-0", "decode-0"}
        done = nodes.run("down", "--name", "shop")
        assert done.returncode == 2 and "there is no deployment shop on this cluster" in done.stderr


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("long")
def test_a_node_ends_under_load(settings: Path, prompts: list[list[int]], expected: list[Answer]) -> None:
    pairs = {"prefill_min": 2, "prefill_max": 2, "decode_min": 2, "decode_max": 2}
    with RayCluster(more=2, cpus=3, **QUIET) as nodes, shop(nodes, settings, **pairs) as url:
        before = places(nodes)
        assert len(before) == 5, before
        lost = before["prefill-0"]
        there = {name for name, node in before.items() if node == lost}
        assert there in ({"prefill-0", "decode-0"}, {"prefill-0", "decode-1"}), "a pair shares a machine"
        with Load(url, prompts, expected) as load:
            load.goes_on()
            nodes.kill(lost)
            began = time.monotonic()
            load.goes_on()
            until(lambda: _whole(nodes, lost), "others took the place of the pair", every=0.5)
            print(f"a pair was back {time.monotonic() - began:.1f} s after its node's end")
            load.goes_on()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("long")
def test_workers_come_and_go_with_load(
    settings: Path, prompts: list[list[int]], expected: list[Answer]
) -> None:
    """One decode worker, three, and one again. A request now and then is too little for a second one."""
    scale = {"decode_max": 3, "decode_target": 0.005}
    with (
        RayCluster(more=2, cpus=4, **QUIET) as nodes,
        shop(nodes, settings, **scale, scale_down_seconds=2.0) as url,
    ):
        with Load(url, prompts, expected, callers=4) as load:
            until(lambda: count(nodes, "decode") == 3, "three decode workers", 300.0, every=1.0)
            load.goes_on()
        with Load(url, prompts, expected, callers=1, pause=3.0) as load:
            until(lambda: len(places(nodes)) == 3, "one of each again", 300.0, every=1.0)
            assert count(nodes, "decode") == 1
            load.goes_on()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("long")
def test_the_loss_of_the_head_stops_nothing(
    settings: Path, prompts: list[list[int]], expected: list[Answer]
) -> None:
    with RayCluster(more=1, cpus=3, **QUIET) as nodes:
        up = nodes.run("up", "--config", str(settings))
        assert up.returncode == 0, up.stderr
        with Load(up.stdout.split()[-1], prompts, expected, callers=1, pause=0.5) as load:
            load.goes_on()
            nodes.cluster.head_node.kill_gcs_server()
            time.sleep(90.0)  # longer than Ray waits for a head unless it is told to wait longer
            load.goes_on()


def count(nodes: RayCluster, role: str) -> int:
    return sum(name.startswith(role) for name in places(nodes))


def _whole(nodes: RayCluster, lost: str) -> bool:
    now = places(nodes)
    return len(now) == 5 and lost not in now.values()
