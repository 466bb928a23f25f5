"""Prefill workers that say anything in any order to a real decode worker, and what it holds afterwards."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from made_catalogs import build_from_arrays
from played_engine import PlayedEngine
from wire_fuzz import HOSTILE_INTS, SETTINGS, Errors

from decode_worker.phases import TaskPhase
from decode_worker.task import DecodeTask
from decode_worker.worker import DecodeWorker
from xgr_runtime.catalog import Catalogs, CatalogView
from xgr_runtime.config import DecodeConfig
from xgr_runtime.handover.protocol import chunk_checksum, digest_of
from xgr_runtime.model.memory.kv_copies import Copies
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.transport import Received
from xgr_runtime.transport.sockets import _decoded
from xgr_runtime.wire.messages import (
    PROTOCOL,
    AttemptId,
    Cancel,
    Commit,
    DecodeRequest,
    Failed,
    KvChunk,
    KvReady,
    Limits,
    LinkHello,
    ModelIdentity,
    Nack,
    Open,
    ToDecode,
    ToDecodeData,
)

IDENTITY = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
HIDDEN = bytes(4 * IDENTITY.hidden)
TOKENS = 20
PEERS = {b"p": 3, b"q": 5}  # and the incarnation that each greeted with
REQUESTS = st.integers(0, 2)
ONE_IN_SIX = st.sampled_from([True, *[False] * 5])
NUMBERS = st.sampled_from([*range(4), 8, TOKENS, TOKENS + 1, 2**31 - 1] * 4 + HOSTILE_INTS)
PEER = st.sampled_from([*PEERS])
LIES = st.sampled_from(
    [{}, {}, {"chunks": 2}, {"digest": 2**64 - 1}, {"checksum": None}, {"cached_tokens": TOKENS + 1}]
)
DATA, CONTROL = msgspec.msgpack.Decoder(ToDecodeData), msgspec.msgpack.Decoder(ToDecode)


class PrefillWorkersSayAnything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.errors = Errors("decode_worker")
        self.now = 1.0
        engine: Any = PlayedEngine()
        engine.pool = KvPool(ModelIdentity("", "float32", 2, 1, 4, 8, 100, 1), 4, 16)
        path = Path(self.folder.name)
        config = DecodeConfig(
            model_path="m",
            catalog="c",
            control_address=f"ipc://{path}/c",
            data_address=f"ipc://{path}/d",
            chunk_credits=2,
        )
        catalog = build_from_arrays(["a", "b"], np.array([[1, 2], [1, 3]], np.int32))
        self.worker = DecodeWorker(
            config, engine, Catalogs(CatalogView(catalog)), IDENTITY, Limits(64, 8), clock=lambda: self.now
        )
        self.inbound = self.worker.inbound
        self.inbound.chunks.copies = Copies(engine.pool)
        self.nacks: list[Nack] = []
        self.failed: list[Failed] = []
        self.inbound.data.send = self.hear  # type: ignore[method-assign]
        self.worker.desk.control.send = self.hear_router  # type: ignore[method-assign]
        for peer, incarnation in PEERS.items():
            self.inbound.data._greet(peer, LinkHello(PROTOCOL, peer.decode(), incarnation, IDENTITY))

    def hear(self, peer: bytes, message: Any) -> bool:
        if isinstance(message, Nack):
            self.nacks.append(message)
        return True

    def hear_router(self, router: int, message: Any) -> bool:
        if isinstance(message, Failed):
            self.failed.append(message)
        return True

    def id(self, request: int, prefill: int = 3) -> AttemptId:
        return AttemptId(1, request, 1, prefill, self.worker.desk.incarnation)

    def say(self, peer: bytes, *messages: Any, frames: tuple[bytes, ...] = ()) -> None:
        """As it goes over the wire, where the codec has its say, too."""
        views = [memoryview(frame) for frame in frames]
        decoded = [_decoded(DATA, msgspec.msgpack.encode(message)) for message in messages]
        batch = [Received(peer, message, views) for message in decoded if message is not None]
        if len(batch) < len(messages):
            self.inbound.data.listener._bad_peers.add(peer)
        self.inbound.data.receive = lambda: iter(batch)  # type: ignore[method-assign]
        self.worker.take_over(self.inbound.receive())

    def task(self, request: int) -> DecodeTask | None:
        return next((task for task in self.worker.tasks if task.id == self.id(request)), None)

    def next_chunk(self, request: int) -> tuple[KvChunk, bytes, bytes]:
        """The chunk that is due, of whole layers as long as nothing came; else the first one."""
        task = self.task(request)
        start = task.receiver._next_token[0] if task else 0
        sequence = len(task.receiver._checksums) if task else 0
        count = max(1, min(8, TOKENS - start))
        body = bytes([request]) * (count * IDENTITY.layer_token_bytes)  # keys, or values, of both layers
        chunk = KvChunk(self.id(request), sequence, 0, 2, start, count, 0, 1, chunk_checksum(body, body))
        return chunk, body, body

    @rule(request=REQUESTS, steps=st.integers(3, 9))
    def go_far(self, request: int, steps: int) -> None:
        self.go_on(request, steps)

    @rule(request=REQUESTS, steps=st.integers(1, 8))
    def go_on(self, request: int, steps: int) -> None:
        """What should come next, so many times."""
        for _ in range(steps):
            task = self.task(request)
            if task is None:
                self.ask(request, 60.0)
            elif not task.receiver.opened:
                self.open(request, b"p", TOKENS)
            elif task.phase in (TaskPhase.PAGES, TaskPhase.ROWS):
                self.turn(0.1)
            elif task.phase is TaskPhase.SEARCH:
                self.finish_searches()
            elif task.receiver._next_token[0] < TOKENS:
                self.chunk(request, 1)
            else:
                self.commit(request, {})

    # --- the router ---

    @rule(request=REQUESTS, timeout=st.sampled_from([5.0, 60.0]))
    def ask(self, request: int, timeout: float) -> None:
        tokens = (np.arange(TOKENS, dtype=np.int32) + request).tobytes()
        version = self.worker.catalogs.newest.version
        message = DecodeRequest(self.id(request), tokens, 4, 2, "vocab", version, None, b"", timeout)
        self.worker.desk.take(message, self.now)

    @rule(
        request=REQUESTS,
        field=st.sampled_from(DecodeRequest.__struct_fields__),
        value=st.sampled_from(HOSTILE_INTS),
    )
    def ask_nonsense(self, request: int, field: str, value: int) -> None:
        version = self.worker.catalogs.newest.version
        plain = msgspec.to_builtins(
            DecodeRequest(self.id(request), b"\x01\0\0\0", 4, 2, "vocab", version, None, b"\xff", 9.0),
            builtin_types=(bytes,),
        )
        message = _decoded(CONTROL, msgspec.msgpack.encode(plain | {field: value}))
        if message is not None:
            self.worker.desk.take(message, self.now)

    @rule(request=REQUESTS)
    def cancel(self, request: int) -> None:
        self.worker.desk.take(Cancel(self.id(request), "no longer wanted"), self.now)

    # --- prefill workers ---

    @rule(request=REQUESTS, peer=PEER, tokens=st.sampled_from([TOKENS] * 9 + [1, 2**31 - 1, 2**63]))
    def open(self, request: int, peer: bytes, tokens: int) -> None:
        self.say(peer, Open(self.id(request), tokens, 0.1))

    @rule(request=REQUESTS, times=st.sampled_from([1, 1, 1, 2, 3]))
    def chunk(self, request: int, times: int) -> None:
        message, *frames = self.next_chunk(request)
        self.say(b"p", *[message] * times, frames=tuple(frames))

    @rule(
        request=REQUESTS,
        field=st.sampled_from(KvChunk.__struct_fields__[1:]),
        value=NUMBERS,
        kind=st.sampled_from([KvChunk, KvReady]),
    )
    def wrong_chunk(self, request: int, field: str, value: int, kind: type[Any]) -> None:
        message, *frames = self.next_chunk(request)
        fields = {name: getattr(message, name) for name in kind.__struct_fields__}
        self.say(b"p", kind(**fields | ({field: value} if field in fields else {})), frames=tuple(frames))

    @rule(request=REQUESTS, sizes=st.lists(st.sampled_from([0, 1, 256, 4096]), max_size=3))
    def frames_of_other_sizes(self, request: int, sizes: list[int]) -> None:
        message, *_ = self.next_chunk(request)
        self.say(b"p", message, frames=tuple(bytes(size) for size in sizes))

    @rule(
        request=REQUESTS,
        lie=LIES,
    )
    def commit(self, request: int, lie: dict[str, Any]) -> None:
        task = self.task(request)
        sums = task.receiver._checksums if task else []
        fields: dict[str, Any] = {
            "chunks": len(sums),
            "digest": digest_of(sums),
            "checksum": chunk_checksum(HIDDEN, b""),
            "prefill": 0.1,
        }
        self.say(b"p", Commit(self.id(request), **fields | lie), frames=(HIDDEN,))

    @rule(request=REQUESTS, peer=PEER)
    def prefill_cancels(self, request: int, peer: bytes) -> None:
        self.say(peer, Cancel(self.id(request), "x" * 9000 if request == 2 else "gave up"))

    @rule(request=REQUESTS, peer=PEER, prefill=st.sampled_from([5, 7, 9] * 3 + [2**63]))
    def foreign(self, request: int, peer: bytes, prefill: int) -> None:
        self.say(peer, Open(self.id(request, prefill), TOKENS, 0.1))
        self.say(peer, Cancel(AttemptId(1, request, 1, 3, 4), "another decode worker's"))

    @rule(peer=PEER, now=ONE_IN_SIX)
    def unreadable(self, peer: bytes, now: bool) -> None:
        if now:
            self.say(peer, Open(self.id(0), -1, 0.1))

    @rule(incarnation=st.sampled_from([3, 3, 3, 9]))
    def greet_again(self, incarnation: int) -> None:
        self.inbound.data._greet(b"p", LinkHello(PROTOCOL, "p", incarnation, IDENTITY))

    # --- the worker itself ---

    @rule(seconds=st.sampled_from([0.1] * 4 + [1.0] * 4 + [20.0]))
    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.worker.expire(self.now)
        self.inbound.grant_pages(self.now)
        self.worker.take_over(self.inbound.settle(self.now))
        self.worker.start_searches(self.now)

    @rule()
    def finish_searches(self) -> None:
        for task in list(self.worker.running):
            assert task.search is not None
            task.search.finish(np.zeros(1, np.float32), np.zeros(1, np.int32), False, -np.inf)
            self.worker.answer(task)

    @invariant()
    def nothing_unforeseen_happened(self) -> None:
        assert not self.errors.said

    @invariant()
    def what_is_held_belongs_to_somebody(self) -> None:
        load = self.worker.load()
        assert load.pages_used <= 2 * len(self.worker.tasks), "two pages hold a prompt"
        assert load.credits_out <= 2 * len(self.worker.tasks) and load.leases <= len(self.worker.tasks)
        assert len(self.inbound.early_opens) <= 8

    def teardown(self) -> None:
        try:
            self.now += 1000.0
            self.worker.expire(self.now)
            for id in [task.id for task in self.worker.tasks]:  # whose deadline is in a million years
                self.worker.desk.take(Cancel(id, "no longer wanted"), self.now)
            load = self.worker.load()
            assert not load.requests and not load.pages_used and not load.credits_out and not load.leases
            assert (
                not load.rows_used
                and not self.inbound.early_opens
                and not self.inbound.commits
                and not self.inbound.reading
            )
            assert self.worker.scheduler.rows.used == 0 and not self.errors.said
        finally:
            self.errors.remove()
            self.worker.desk.control.listener.close()
            self.inbound.data.listener.close()
            self.folder.cleanup()


TestEveryOrder = PrefillWorkersSayAnything.TestCase
TestEveryOrder.settings = settings(SETTINGS, max_examples=150, stateful_step_count=30)


def test_what_should_come_next_leads_to_an_answer() -> None:
    """Else the orders above would stay near their beginning."""
    machine = PrefillWorkersSayAnything()
    try:
        machine.go_on(1, 9)
        assert machine.worker.counters["answered"] == 1 and not machine.failed and not machine.nacks
    finally:
        machine.teardown()
