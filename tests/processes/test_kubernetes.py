"""A router that finds its workers through a cluster's API: they come, finish what they have, and go."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster
from kubernetes_api import KubernetesApi, make_authority, pod
from ports import free_port
from sameness import assert_identical
from until import until

from xgr_runtime.client import XgrClient
from xgr_runtime.launcher.child import Child
from xgr_runtime.transport import new_key_pair
from xgr_runtime.transport.keyring import write_key
from xgr_runtime.wire.answers import Answer

ROLES = ("router", "prefill", "decode")
SELECTOR = "app.kubernetes.io/instance=shop"


class PodCluster(Cluster):
    """Workers as a chart's pods: on tcp ports, with a key per role, each with a port for probes."""

    def __init__(self, model: Path, catalog: Path, api: KubernetesApi) -> None:
        super().__init__(model, catalog, kv_transfer="frames", hedge_after=0.0)
        self.api = api
        self.keys = Path(tempfile.mkdtemp(prefix="xgr-test-"))
        self.addresses: dict[str, str] = {}
        allow = []
        for role in ROLES:
            public, secret = new_key_pair()
            write_key(self.keys, role, secret)
            allow.append(f"{role} {public}\n")
        (self.keys / "allow").write_text("".join(allow))

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.keys)

    def runs(self, *names: str, **changed: Any) -> None:
        """Their pods run, as far as the cluster's API knows."""
        for name in names:
            self.api.put(pod(name, _role(name), int(self._address(name).rpartition(":")[2]), **changed))

    def probe(self, name: str, path: str) -> httpx.Response:
        return httpx.get(f"http://{self._address(f'{name}.probes').removeprefix('tcp://')}{path}")

    def _address(self, name: str) -> str:
        if name not in self.addresses:
            self.addresses[name] = f"tcp://127.0.0.1:{free_port()}"
        return self.addresses[name]

    def _spawn(self, name: str, module: str, kind: Any, own: Mapping[str, Any]) -> Child:
        more: dict[str, Any] = {
            "curve_key": str(self.keys / f"{_role(name)}.key"),
            "curve_allow": str(self.keys / "allow"),
        }
        if module == "router":
            more |= {"prefill": [], "decode": [], "kubernetes_selector": SELECTOR}
            more |= {"kubernetes_api": self.api.url, "kubernetes_account": str(self.api.folder)}
        else:
            more["probe_address"] = self._address(f"{name}.probes").removeprefix("tcp://")
            more["leave_timeout"] = 60.0
        return super()._spawn(name, module, kind, {**own, **more})


def _role(name: str) -> str:
    return name.partition("-")[0]


@pytest.fixture(scope="module")
def pods(
    checkpoint: Path, catalog_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PodCluster]:
    folder = tmp_path_factory.mktemp("api")
    make_authority(folder / "authority")
    with (
        KubernetesApi(folder / "account", folder / "authority") as api,
        PodCluster(checkpoint, catalog_source, api) as cluster,
    ):
        yield cluster


def usable(client: XgrClient) -> set[str]:
    return {str(worker.worker) for worker in client.workers() if worker.usable}


def ask(client: XgrClient, prompts: list[list[int]]) -> list[Answer]:
    return [client.generate(input_ids=prompt, beam_width=32, timeout_ms=60_000) for prompt in prompts]


def test_workers_come_go_and_outlive_the_api(
    pods: PodCluster, client: XgrClient, prompts: list[list[int]]
) -> None:
    expected = ask(client, prompts)
    with pods.client() as ours:
        assert not ours.ready() and not ours.workers(), "it starts before its workers"
        pods.runs("prefill-0", "decode-0")
        until(ours.ready, "the first pair was found")
        pods.beside("decode-1")
        pods.runs("decode-1")
        until(lambda: usable(ours) == {"prefill-0", "decode-0", "decode-1"}, "one more was found")

        pods.api.down()
        until(lambda: "the connection to the API failed" in problem(pods), "the API is missed")
        answers = ask(ours, prompts)
        assert usable(ours) == {"prefill-0", "decode-0", "decode-1"}, "the list is as it was"
        pods.api.up()
        until(lambda: not problem(pods), "the API is back")

        with load(pods, prompts, expected) as done:
            until(lambda: pods.in_flight("decode-0"), "it has something to finish")
            assert pods.probe("decode-0", "/readiness").text == "ready\n"
            pods.runs("decode-0", leaving=True)
            pods.signal("decode-0", signal.SIGTERM)
            assert pods.children["decode-0"].wait(30.0)
            pods.api.remove("decode-0")
            until(lambda: usable(ours) == {"prefill-0", "decode-1"}, "it is gone")
            before = len(done)
            until(lambda: len(done) > before + 4, "the other goes on")
        for answer, good in zip(answers, expected, strict=True):
            assert_identical(answer, good)


def test_a_worker_that_stops_says_so_whoever_names_it(
    pods: PodCluster, client: XgrClient, prompts: list[list[int]]
) -> None:
    """Its pod is there as before: what the router hears of it is enough, and each request has one attempt."""
    expected = ask(client, prompts)
    pods.beside("prefill-1")
    pods.runs("prefill-1")
    with pods.client() as ours:
        until(lambda: "prefill-1" in usable(ours), "one more was found")
        with load(pods, prompts, expected):
            pods.signal("prefill-0", signal.SIGTERM)
            assert pods.children["prefill-0"].wait(30.0)
        assert usable(ours) == {"prefill-1", "decode-1"}
        assert pods.children["prefill-0"].ending().startswith("ended with exit code 0")


def problem(pods: PodCluster) -> str:
    return str(httpx.get(f"{pods.url}/workers").json()["problem"])


class load:
    """Callers who ask all the while; each gets what it should at the first attempt."""

    def __init__(self, pods: PodCluster, prompts: list[list[int]], expected: list[Answer]) -> None:
        self._pods, self._asked = pods, list(zip(prompts, expected, strict=True))
        self._over = threading.Event()
        self._done: list[Answer] = []
        self._wrong: list[BaseException] = []
        self._callers = [threading.Thread(target=self._call, args=(n,)) for n in range(3)]

    def __enter__(self) -> list[Answer]:
        for caller in self._callers:
            caller.start()
        until(lambda: self._done, "the load is there")
        return self._done

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for caller in self._callers:
            caller.join()
        assert not self._wrong, self._wrong[0]

    def _call(self, number: int) -> None:
        try:
            with self._pods.client() as client:
                while not self._over.is_set():
                    prompt, good = self._asked[number % len(self._asked)]
                    (answer,) = ask(client, [prompt])
                    assert_identical(answer, good)
                    assert answer.meta_info.attempts == 1
                    self._done.append(answer)
                    number += 1
        except BaseException as error:
            self._wrong.append(error)
