"""A deployment over tcp with keys: the same answers, and strangers at its ports change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from cluster import Cluster
from keyed_cluster import KeyedCluster
from sameness import assert_identical
from shared_templates import SharedStarter
from throw import throw
from until import until

from xgr_runtime.client import XgrClient
from xgr_runtime.config import ServeConfig
from xgr_runtime.errors import BadRequest
from xgr_runtime.launcher.child import Child
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.topology import ROUTER, WORKERS
from xgr_runtime.transport import new_key_pair
from xgr_runtime.wire.answers import Answer, WorkerStatus
from xgr_runtime.wire.messages import PROTOCOL, FlushCache, Hello, Role


@pytest.fixture(scope="module")
def keyed(checkpoint: Path, catalog_source: Path) -> Iterator[KeyedCluster]:
    with KeyedCluster(checkpoint, catalog_source) as cluster:
        yield cluster


def ask(client: XgrClient, prompts: list[list[int]]) -> list[Answer]:
    return [client.generate(input_ids=prompt, beam_width=32, timeout_ms=60_000) for prompt in prompts]


def statuses(cluster: Cluster) -> dict[str, WorkerStatus]:
    with cluster.client() as client:
        return {str(status.worker): status for status in client.workers(fresh=True)}


class Strangers:
    """At every port: one without a key, and one whose key nobody lists. Both speak the protocol well."""

    def __init__(self, cluster: KeyedCluster) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[Any] = []
        for name, address in cluster.addresses.items():
            self._knock(address)
            self._knock(address, cluster.public[name.removesuffix(".data")])

    def _knock(self, address: str, server: str | None = None) -> None:
        stranger = self._context.socket(zmq.DEALER)
        stranger.linger = 0
        if server is not None:
            public, secret = new_key_pair()
            stranger.curve_publickey, stranger.curve_secretkey = public.encode(), secret.encode()
            stranger.curve_serverkey = server.encode()
        stranger.connect(address)
        for message in (Hello(PROTOCOL, 66, "stranger"), FlushCache(66, 1)):
            throw(stranger, msgspec.msgpack.encode(message))
        throw(stranger, b"junk")
        self._sockets.append(stranger)

    def answers(self) -> int:
        return sum(bool(stranger.poll(100)) for stranger in self._sockets)

    def close(self) -> None:
        self._context.destroy(linger=0)


def test_answers_are_the_same_with_keys_whoever_knocks(
    keyed: KeyedCluster, client: XgrClient, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    strangers = Strangers(keyed)
    with keyed.client() as over_tcp:
        for answer, expected in zip(ask(over_tcp, prompts), ask(client, prompts), strict=True):
            assert_identical(answer, expected)
    assert len(keyed.addresses) == 3 and strangers.answers() == 0
    loads = {name: status.load.counters for name, status in statuses(keyed).items() if status.load}
    assert len(loads) == 2
    strangers.close()
    assert loads["decode-0"]["kv_bytes_as_frames"] > 0, "KV took the encrypted way"
    assert all(counters["bad_messages"] == 0 for counters in loads.values()), "the junk was never looked at"
    said = capfd.readouterr().err
    assert "--curve-allow" in said, "an unlisted key is told to the operator"
    shown = [said, *(Path(f"/proc/{keyed.pid(name)}/cmdline").read_text() for name in keyed.children)]
    shown += [Path(f"/proc/{keyed.pid(name)}/environ").read_text() for name in keyed.children]
    assert not [secret for secret in keyed.secrets() if any(secret in text for text in shown)]


@pytest.mark.in_turns("name")
@pytest.mark.parametrize("name", ["prefill-0", "decode-0"])
def test_a_restarted_worker_is_connected_again(
    keyed: KeyedCluster, client: XgrClient, prompts: list[list[int]], name: str
) -> None:
    keyed.restart(name)
    with keyed.client() as over_tcp:
        until(over_tcp.ready, "its links are made again", 30)
        assert_identical(ask(over_tcp, prompts[:1])[0], ask(client, prompts[:1])[0])
        rejoin(over_tcp, keyed.addresses[name], name)
        assert_identical(ask(over_tcp, prompts[:1])[0], ask(client, prompts[:1])[0])
    keyed.settled()


def rejoin(client: XgrClient, address: str, name: str) -> None:
    """Take a worker out and in again: whose key it has to be is asked for, and so is its line in the list."""
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    client.remove_worker(name)
    until(lambda: name not in {worker.worker for worker in client.workers()}, "it is forgotten", 30)
    for wrong in (address, f"{address}#nobody"):
        with pytest.raises(BadRequest):
            client.add_worker(wrong, role)
    client.add_worker(f"{address}#{name}", role)
    until(client.ready, "its links are made anew", 30)


BEYOND, HERE = "tcp://0.0.0.0:7000", "tcp://127.0.0.1:7000"


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("prefill_worker", ["--control-address", BEYOND]),
        ("decode_worker", ["--control-address", BEYOND, "--data-address", HERE]),
        ("decode_worker", ["--control-address", HERE, "--data-address", BEYOND]),
        (
            "decode_worker",
            [
                "--control-address",
                HERE,
                "--data-address",
                HERE,
                "--advertise-data-address",
                "tcp://10.0.0.1:7",
            ],
        ),
        ("router", ["--port", "0", "--prefill", "tcp://10.0.0.1:7000", "--decode", HERE]),
        ("router", ["--port", "0", "--prefill", HERE, "--decode", "tcp://10.0.0.1:7000"]),
    ],
    ids=["prefill", "decode", "data", "advertised", "router-to-prefill", "router-to-decode"],
)
def test_without_keys_no_process_starts_beyond_this_machine(
    module: str, argv: list[str], checkpoint: Path, catalog_source: Path
) -> None:
    common = ["--model-path", str(checkpoint)]
    common += [] if module == "prefill_worker" else ["--catalog", str(catalog_source)]
    starter = SharedStarter(ServeConfig(model_path=str(checkpoint), catalog=str(catalog_source), threads=1))
    until(starter.settled, "templates have imported")
    template = ROUTER if module == ROUTER else WORKERS
    child = Child(Program(module, module, [*common, *argv], template=template), start=starter.start)
    child.start()
    assert child.wait(60.0)
    said = child.ending()
    child.close()
    assert said.startswith(f"ended with exit code 2: {module}: error: tcp://")
    assert "--curve-key" in said and "xgr keys new" in said
