"""`xgr ray` on a cluster of three nodes: what it starts answers as one machine does, whichever node ends."""

from __future__ import annotations

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
prefill_min = 2
prefill_max = 2
decode_min = 2
decode_max = 2
"""
_WORKER = re.compile(r"(\S+)-(\d+) +(ready|starting|over) +node (\S+)")


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    """Room for a router and two pairs, and for one pair more."""
    with RayCluster(more=2, cpus=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "serve.toml"
    path.write_text(SHOP.format(model=checkpoint, catalog=catalog_source))
    return path


@pytest.fixture(scope="module")
def shop(nodes: RayCluster, settings: Path) -> Iterator[str]:
    """The URL of the deployment, which is ended before the cluster is."""
    done = nodes.run("up", "--config", str(settings))
    assert done.returncode == 0, done.stderr
    yield done.stdout.split()[-1]
    done = nodes.run("down", "--config", str(settings))
    assert done.returncode == 0, done.stderr
    done = nodes.run("status")
    assert "there is no deployment xgr" in done.stderr and "(there is: none)" in done.stderr


def places(nodes: RayCluster) -> dict[str, str]:
    """Node of each process that is ready, the first digits of its id."""
    done = nodes.run("status", "--name", "shop")
    found = _WORKER.findall(done.stdout)
    return {f"{role}-{number}": node for role, number, state, node in found if state == "ready"}


class Load:
    """Callers that ask one prompt after another until the block ends; each answer is compared."""

    def __init__(self, url: str, prompts: list[list[int]], expected: list[Answer], callers: int = 3) -> None:
        self.answered = 0
        self.url, self._prompts, self._expected, self._callers = url, prompts, expected, callers
        self._over = threading.Event()

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(self._callers)
        self._running = [self._pool.submit(self._ask, number) for number in range(self._callers)]
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        with self._pool:
            for running in self._running:
                running.result()  # what went wrong with a request is raised here

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


@pytest.fixture(scope="module")
def expected(client: XgrClient, prompts: list[list[int]]) -> list[Answer]:
    """Of a deployment on one machine, without Ray."""
    return [client.generate(input_ids=prompt, beam_width=WIDTH, timeout_ms=60_000) for prompt in prompts]


def test_it_answers_as_one_machine_does_and_outlives_a_node(
    nodes: RayCluster, settings: Path, shop: str, prompts: list[list[int]], expected: list[Answer]
) -> None:
    with XgrClient(shop, timeout=PATIENCE) as asked:
        for prompt, one in zip(prompts, expected, strict=True):
            assert_identical(asked.generate(input_ids=prompt, beam_width=WIDTH, timeout_ms=60_000), one)

    again = nodes.run("up", "--config", str(settings))
    assert again.returncode == 2 and "shop is on this cluster already" in again.stderr

    before = places(nodes)
    assert len(before) == 5, before
    lost = before["prefill-0"]
    assert {name for name, node in before.items() if node == lost} in (
        {"prefill-0", "decode-0"},
        {"prefill-0", "decode-1"},
    ), "a pair shares a machine"
    with Load(shop, prompts, expected) as load:
        until(lambda: load.answered >= 6, "load is on")
        nodes.kill(next(node.node_id for node in nodes.nodes if node.node_id.startswith(lost)))
        began, at = time.monotonic(), load.answered
        until(lambda: _whole(nodes, lost), "others took the place of the pair", every=0.5)
        print(f"a pair was back {time.monotonic() - began:.1f} s after its node's end")
        until(lambda: load.answered >= at + 6, "answers go on")


def _whole(nodes: RayCluster, lost: str) -> bool:
    now = places(nodes)
    return len(now) == 5 and lost not in now.values()
