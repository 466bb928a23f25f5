"""Decode workers that say anything in any order to real hand-overs, and what these hold afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from wire_fuzz import HOSTILE_INTS, SETTINGS, Errors

from xgr_runtime.handover.outbound import Outbound
from xgr_runtime.handover.protocol import Chunk, PromptPages, SenderState
from xgr_runtime.handover.transfer import Transfer
from xgr_runtime.transport.sockets import _decoded
from xgr_runtime.wire.messages import (
    MOST_CREDITS,
    Ack,
    AttemptId,
    Credit,
    Grant,
    LinkRefused,
    Message,
    ModelIdentity,
    Nack,
    ProcessId,
    Renew,
    ToPrefillData,
    Way,
)

MODEL = ModelIdentity("hash", "float32", 2, 1, 4, 8, 100, 1)
TOKENS, LEASE = 6, 10.0
PAGES = PromptPages(np.array([0], np.int32), np.array([0], np.uint32))
READER = ProcessId(5, 6)
WAYS: st.SearchStrategy[Way] = st.sampled_from(["frames", "pull", "in place"])
REQUESTS = st.integers(0, 2)
ANSWERS = msgspec.msgpack.Decoder(ToPrefillData)
WRONG = st.sampled_from(HOSTILE_INTS)


class PlayedKv:
    shared: PromptPages | None = PAGES

    def read(self, chunk: Chunk) -> tuple[bytes, bytes]:
        size = chunk.count * MODEL.layer_token_bytes // 2
        return bytes(size), bytes(size)


class PlayedLinks:
    """One link, which takes what it is given while it is `open`."""

    def __init__(self) -> None:
        self.open = True
        self.inbox: list[Any] = []
        self.bad_messages = 0

    def to(self, address: str) -> PlayedLinks:
        return self

    def send(self, decode: int, message: Message, *frames: Any) -> bool:
        msgspec.msgpack.encode(message)
        return self.open

    def receive(self) -> Iterator[tuple[PlayedLinks, Message]]:
        inbox, self.inbox = self.inbox, []
        return ((self, message) for message in inbox)

    def close_idle(self, busy: Any, now: float) -> None:
        pass


class DecodeWorkersSayAnything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.errors = Errors("xgr_runtime")
        self.now, self.reader_lives = 0.0, True
        self.links: Any = PlayedLinks()
        self.out = Outbound(
            "p", 3, MODEL, 2 * MODEL.layer_token_bytes, LEASE, alive=lambda _: self.reader_lives
        )
        self.out._links = cast(Any, self.links)
        self.computed: dict[AttemptId, int] = {}  # layers over two forwards

    def id(self, request: int, decode: int = 4) -> AttemptId:
        return AttemptId(1, request, 1, 3, decode)

    def say(self, message: Any) -> None:
        """As it goes over the wire, where the codec has its say, too."""
        decoded = _decoded(ANSWERS, msgspec.msgpack.encode(message))
        if decoded is not None:
            self.links.inbox.append(decoded)
        self.out.exchange(self.now)

    def transfer(self, request: int) -> Transfer | None:
        return self.out.transfers.get(self.id(request))

    @rule(request=REQUESTS, steps=st.integers(2, 10), way=WAYS)
    def go_on(self, request: int, steps: int, way: Way) -> None:
        """What should come next, so many times."""
        for _ in range(steps):
            transfer = self.transfer(request)
            if transfer is None:
                self.open(request)
            elif transfer.sender.state is SenderState.OPENED:
                reader = READER if way == "in place" else None
                self.say(Grant(transfer.id, 2, LEASE, 0, way, reader))
            elif self.computed[transfer.id] < 5:
                self.compute(request)
            elif transfer.sender.state is SenderState.STREAMING:
                self.say(Credit(transfer.id, 1))
            elif transfer.sender.state is SenderState.COMMITTED:
                self.say(Ack(transfer.id))
            else:
                self.turn(0.1)

    # --- the prefill worker ---

    @rule(request=REQUESTS)
    def open(self, request: int) -> None:
        id = self.id(request)
        if id not in self.out.transfers:
            self.out.open(id, TOKENS, "ipc:///d", self.now + 60.0, 0.0, PlayedKv(), self.now)
            self.computed[id] = 0

    @rule(request=REQUESTS)
    def compute(self, request: int) -> None:
        if (transfer := self.transfer(request)) is None:
            return
        done = self.computed[transfer.id]
        if done < 4:
            forward, layer = divmod(done, 2)
            transfer.layer_ready(layer, (TOKENS // 2) * (forward + 1))
        elif done == 4:
            transfer.prompt_ready(0.1, None)
        self.computed[transfer.id] += 1
        self.out.exchange(self.now)

    @rule(request=REQUESTS)
    def cancelled(self, request: int) -> None:
        if (transfer := self.transfer(request)) is not None:
            transfer.fail("cancelled by the router")

    @rule(seconds=st.sampled_from([0.1] * 6 + [2.0] * 3 + [LEASE]))
    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.out.expire(self.now)
        self.out.exchange(self.now)
        self.out.retire()

    @rule(open=st.sampled_from([True, True, True, False]))
    def stall(self, open: bool) -> None:
        self.links.open = open

    # --- decode workers ---

    @rule(
        request=REQUESTS,
        credits=st.integers(1, 3),
        held=st.integers(0, TOKENS),
        way=st.sampled_from(["frames", "pull"]),
    )
    def grant(self, request: int, credits: int, held: int, way: Any) -> None:
        self.say(Grant(self.id(request), credits, LEASE, held, way))

    @rule(request=REQUESTS, reader=st.sampled_from([READER, READER, None]))
    def grant_in_place(self, request: int, reader: ProcessId | None) -> None:
        self.say(Grant(self.id(request), 1, LEASE, 0, "in place", reader))

    @rule(request=REQUESTS, field=st.sampled_from(["credits", "lease", "held_tokens"]), value=WRONG)
    def wrong_grant(self, request: int, field: str, value: int) -> None:
        fields: dict[str, Any] = {"credits": 1, "lease": LEASE, "held_tokens": 0}
        self.say(Grant(self.id(request), **fields | {field: value}))

    @rule(request=REQUESTS, chunks=st.integers(1, 3) | WRONG)
    def credit(self, request: int, chunks: int) -> None:
        self.say(Credit(self.id(request), chunks))

    @rule(request=REQUESTS, lease=st.sampled_from([LEASE, 0.0, -1.0, float("nan"), float("inf")]))
    def renew(self, request: int, lease: float) -> None:
        self.say(Renew(self.id(request), lease))

    @rule(request=REQUESTS)
    def acknowledge(self, request: int) -> None:
        self.say(Ack(self.id(request)))

    @rule(request=REQUESTS, reason=st.sampled_from(["no pages", "x" * 8192, "x" * 8193]))
    def refuse(self, request: int, reason: str) -> None:
        self.say(Nack(self.id(request), reason))

    @rule(reason=st.sampled_from(["greet first", "x" * 8192]))
    def refuse_the_link(self, reason: str) -> None:
        self.say(LinkRefused(4, reason))

    @rule(request=REQUESTS, decode=st.sampled_from([5, 2**63]))
    def foreign(self, request: int, decode: int) -> None:
        for message in (Grant(self.id(request, decode), 1, LEASE, 0), Ack(self.id(request, decode))):
            self.say(message)

    @precondition(lambda self: self.reader_lives)
    @rule()
    def the_reader_dies(self) -> None:
        self.reader_lives = False

    @invariant()
    def nothing_unforeseen_happened(self) -> None:
        assert not self.errors.said

    @invariant()
    def credits_stay_within_their_bound(self) -> None:
        for transfer in self.out.transfers.values():
            assert 0 <= transfer.sender.credits <= MOST_CREDITS
            assert transfer.sender.state is SenderState.STREAMING or not transfer.sender.credits

    def teardown(self) -> None:
        try:
            self.reader_lives = False
            for _ in range(2):
                self.now += 1000.0
                self.out.expire(self.now)
                self.out.retire()
            assert not self.out.transfers and not self.out.credits_out and not self.errors.said
        finally:
            self.errors.remove()


TestEveryOrder = DecodeWorkersSayAnything.TestCase
TestEveryOrder.settings = settings(SETTINGS, max_examples=300, stateful_step_count=30)


@pytest.mark.parametrize("way", ["frames", "pull", "in place"])
def test_what_should_come_next_leads_to_the_end(way: Way) -> None:
    """Else the orders above would stay near their beginning."""
    machine = DecodeWorkersSayAnything()
    try:
        machine.open(1)
        (transfer,) = machine.out.transfers.values()
        machine.go_on(1, 20, way)
        assert transfer.sender.state is SenderState.DONE and transfer.sender.way == way
    finally:
        machine.teardown()
