"""Sender and receiver in every order of events: a small transfer, explored exhaustively.

The world is one sender, one receiver, the two ordered channels between them, and the sender's pages, which
are used for something else as soon as they may be. From the first state, every event that can happen is
tried, from every state that this reaches; each state must keep the promises below.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from xgr_runtime.handover.protocol import (
    ChunkPlan,
    PromptPages,
    Receiver,
    ReceiverState,
    Sender,
    SenderState,
    chunk_checksum,
    range_checksum,
)
from xgr_runtime.wire.messages import (
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Credit,
    Grant,
    KvChunk,
    KvReady,
    Nack,
    Open,
    ProcessId,
    Way,
)

ID = AttemptId(router=1, request=2, attempt=1, prefill=3, decode=4)
LAYERS, TOKENS, TOKEN_BYTES, HEADS, CREDITS = 2, 2, 2, 1, 2
SMALL, LARGE = (
    TOKEN_BYTES,
    LAYERS * TOKENS * TOKEN_BYTES,
)  # chunks; large ones wait for all layers of a forward
HIDDEN = b"hiddn"
WAYS = pytest.mark.parametrize("way", ["frames", "pull", "in place"])
READER = ProcessId(5, 6)
PAGES = PromptPages(np.array([0], np.int32), np.array([0], np.uint32))
FOREIGN = (b"?", b"?")  # what another prompt's KV looks like
# Faults, tokens of a forward, hidden state: with two of each kind of freedom there are millions of orders.
CASES = pytest.mark.parametrize(
    ("fault_count", "forward_tokens", "hidden", "chunk_bytes"),
    [
        pytest.param(0, TOKENS, HIDDEN, SMALL, id="faults=0"),
        pytest.param(0, 1, None, SMALL, id="faults=0-two-forwards-kv-only"),
        pytest.param(0, 1, HIDDEN, LARGE, id="faults=0-two-forwards-large-chunks"),
        pytest.param(1, TOKENS, None, SMALL, id="faults=1-kv-only"),
        pytest.param(1, 1, HIDDEN, SMALL, id="faults=1-two-forwards"),
        pytest.param(1, 1, HIDDEN, LARGE, id="faults=1-two-forwards-large-chunks"),
        pytest.param(2, TOKENS, HIDDEN, SMALL, id="faults=2"),
    ],
)
LEASE = 10.0


def frames_of(layer: int, start: int, count: int) -> tuple[bytes, bytes]:
    """Made-up keys and values, one byte a token each, all different."""
    keys = bytes(10 * layer + token for token in range(start, start + count))
    return keys, bytes(100 + byte for byte in keys)


@dataclass
class World:
    """Everything that exists while one prompt's KV is handed over."""

    sender: Sender
    receiver: Receiver
    hidden: bytes | None = HIDDEN  # None: COMMIT comes without a frame
    to_decode: list[tuple[Any, ...]] = field(default_factory=list)
    to_prefill: list[Any] = field(default_factory=list)
    forward_tokens: int = TOKENS
    layers_ready: int = 0  # over all forwards
    hidden_ready: bool = False
    faults: int = 0  # that may still happen
    faults_spent: int = 0
    received: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    way: Way = "frames"
    memory: dict[tuple[int, int], tuple[bytes, bytes]] = field(default_factory=dict)  # the sender's pages
    reused: bool = False  # by another prompt, so their generation is another, too
    copies: list[KvReady] = field(default_factory=list)  # that are queued
    arrived: list[tuple[Commit, bytes | None]] = field(default_factory=list)  # COMMITs behind them
    reader_lives: bool = True
    used: bool = False  # beams have read the prompt to their end

    def key(self) -> str:
        """Two worlds with one key behave alike."""
        rest = {name: value for name, value in vars(self).items() if name not in ("sender", "receiver")}
        return repr((vars(self.sender), vars(self.receiver), rest))

    @property
    def reading(self) -> bool:
        """Whether beams attend to the sender's pages."""
        return self.reader_lives and self.way == "in place" and self.receiver.state is ReceiverState.READY


def new_world(
    faults: int, hidden: bytes | None, forward_tokens: int, way: Way, chunk_bytes: int = SMALL
) -> World:
    plan = ChunkPlan(LAYERS, TOKENS, TOKEN_BYTES, chunk_bytes, HEADS)
    sender = Sender(ID, plan, now=0.0, lease=LEASE, pages=None if way == "frames" else PAGES)
    receiver = Receiver(ID, TOKENS, LAYERS, HEADS, TOKEN_BYTES, len(HIDDEN))
    opened = [(sender.open(0.0),)]
    return World(sender, receiver, hidden, opened, faults=faults, forward_tokens=forward_tokens, way=way)


Event = Callable[[World], None]


def spend_fault(w: World) -> None:
    w.faults -= 1
    w.faults_spent += 1


def layers_to_compute(w: World) -> int:
    return LAYERS * TOKENS // w.forward_tokens


def compute_layer(w: World) -> None:
    forward, layer = divmod(w.layers_ready, LAYERS)
    end = (forward + 1) * w.forward_tokens
    for token in range(end - w.forward_tokens, end):
        w.memory[layer, token] = frames_of(layer, token, 1)
    w.sender.layer_ready(layer, end)
    w.layers_ready += 1


def finish_prompt(w: World) -> None:
    w.hidden_ready = True
    w.sender.prompt_ready(0.1, None if w.hidden is None else chunk_checksum(w.hidden, b""))


def send_chunk(w: World) -> None:
    chunk = w.sender.next_chunk()
    assert chunk is not None
    if w.way == "pull":
        w.to_decode.append((w.sender.ready_message(),))
        w.sender.chunk_sent(range_checksum(w.sender.ready_message()))
        return
    keys, values = frames_of(chunk.first_layer, chunk.start, chunk.count)
    checksum = chunk_checksum(keys, values)
    w.to_decode.append((w.sender.chunk_message(checksum), keys, values))
    w.sender.chunk_sent(checksum)


def send_commit(w: World) -> None:
    commit = w.sender.commit()
    assert commit is not None
    w.to_decode.append((commit, w.hidden))
    w.sender.commit_sent()


def send_cancel(w: World) -> None:
    w.to_decode.append((w.sender.cancel(),))
    w.sender.cancel_sent()


def grant(w: World) -> None:
    reader = READER if w.way == "in place" else None
    w.to_prefill.append(w.receiver.grant(CREDITS, LEASE, way=w.way, reader=reader))


def reuse_pages(w: World) -> None:
    w.memory, w.reused = {place: FOREIGN for place in w.memory}, True


def copy_one(w: World) -> None:
    m = w.copies.pop(0)
    for layer in range(m.first_layer, m.last_layer):
        for token in range(m.start, m.start + m.count):
            w.received[layer, token] = w.memory[layer, token]


def take_commit(w: World) -> None:
    answer_with(w, w.receiver.commit(*w.arrived.pop(0), intact=not w.reused))
    if w.way != "in place" and w.receiver.state is ReceiverState.READY:
        w.used = True
        answer_with(w, w.receiver.release())


def finish_search(w: World) -> None:
    w.received, w.used = dict(w.memory), True
    answer_with(w, w.receiver.release())


def answer_with(w: World, reply: Any) -> None:
    if reply is not None:
        w.to_prefill.append(reply)


def deliver_to_decode(w: World) -> None:
    message, *frames = w.to_decode.pop(0)
    reply: Any = None
    match message:
        case Open():
            reply = w.receiver.open(message)
        case KvChunk():
            reply = w.receiver.chunk(message, *frames)
            if isinstance(reply, Credit):
                for i in range(message.count):
                    token = tuple(frame[i : i + 1] for frame in frames)
                    w.received[message.first_layer, message.start + i] = token
        case KvReady():
            reply = w.receiver.ready(message)
            if isinstance(reply, Credit):
                w.copies.append(message)
        case Commit() | Cancel() if w.way == "in place" and is_over(w.receiver):
            reply = Nack(ID, "not read here")
        case Commit():
            w.arrived.append((message, frames[0]))
        case Cancel() if w.receiver.state in (ReceiverState.WAITING, ReceiverState.STREAMING):
            w.receiver.fail("cancelled")
    answer_with(w, reply)


def is_over(receiver: Receiver) -> bool:
    return receiver.state in (ReceiverState.DONE, ReceiverState.FAILED)


def deliver_to_prefill(w: World) -> None:
    message = w.to_prefill.pop(0)
    match message:
        case Grant():
            w.sender.granted(message, 0.0)
        case Credit():
            w.sender.credited(message.chunks)
        case Ack():
            w.sender.acknowledged()
        case Nack():
            w.sender.refused(message.reason)


def sender_fails(w: World) -> None:
    spend_fault(w)
    w.sender.fail("cancelled by the router")
    if w.sender.over:
        w.to_decode.append((Cancel(ID, w.sender.reason),))


def receiver_fails(w: World) -> None:
    spend_fault(w)
    w.to_prefill.append(w.receiver.release() or w.receiver.fail("deadline"))


def reader_dies(w: World) -> None:
    spend_fault(w)
    w.reader_lives = False


def lease_lapses(w: World) -> None:
    spend_fault(w)
    lapse(w)


def lapse(w: World) -> None:
    """The sender's clock shows the end of the lease, and all decode had to say until then is there."""
    w.sender.lease_until = LEASE
    w.sender.expire(LEASE, lambda reader: reader == READER and w.reader_lives)
    if w.sender.over:
        w.to_decode.append((Cancel(ID, w.sender.reason),))


def lose_message(w: World) -> None:
    spend_fault(w)
    w.to_decode.pop(0)


def lose_answer(w: World) -> None:
    spend_fault(w)
    w.to_prefill.pop(0)


def repeat_message(w: World) -> None:
    spend_fault(w)
    w.to_decode.insert(0, w.to_decode[0])


def damage_chunk(w: World) -> None:
    spend_fault(w)
    message, keys, values = w.to_decode[0]
    w.to_decode[0] = (message, bytes(255 - byte for byte in keys), values)


FAULTS = {
    sender_fails,
    lease_lapses,
    receiver_fails,
    reader_dies,
    lose_message,
    lose_answer,
    repeat_message,
    damage_chunk,
}


def events(w: World) -> Iterator[Event]:
    """All that can happen next."""
    working = w.sender.state not in (SenderState.DONE, SenderState.FAILED)
    if working and w.layers_ready < layers_to_compute(w):
        yield compute_layer
    if working and w.layers_ready == layers_to_compute(w) and not w.hidden_ready:
        yield finish_prompt
    if w.sender.next_chunk() is not None:
        yield send_chunk
    if w.sender.commit() is not None:
        yield send_commit
    if w.sender.cancel() is not None:
        yield send_cancel
    if w.sender.over and not w.reused:
        yield reuse_pages
    if w.reader_lives:
        yield from receiver_events(w)
    if w.to_prefill:
        yield deliver_to_prefill
    if w.faults:
        yield from faults(w)


def receiver_events(w: World) -> Iterator[Event]:
    if w.receiver.wants_pages:
        yield grant
    if w.to_decode:
        yield deliver_to_decode
    if w.copies:
        yield copy_one
    if w.arrived and not w.copies:
        yield take_commit
    if w.reading:
        yield finish_search


def faults(w: World) -> Iterator[Event]:
    if not w.sender.over:
        yield sender_fails
        yield lease_lapses
    if w.receiver.state is not ReceiverState.FAILED and w.reader_lives:
        yield receiver_fails
    if w.reader_lives:
        yield reader_dies
    if w.to_prefill:
        yield lose_answer
    if w.to_decode:
        yield lose_message
        yield repeat_message
        if isinstance(w.to_decode[0][0], KvChunk):
            yield damage_chunk


def twin(thing: Any) -> Any:
    """A copy that an event may change: the object, its sender, receiver and containers, not what these hold.

    Messages and plans are never changed, and to copy them, too, would take most of the time.
    """
    made = copy.copy(thing)
    for name, value in vars(thing).items():
        if isinstance(value, Sender | Receiver):
            setattr(made, name, twin(value))
        elif isinstance(value, list | dict | deque):
            setattr(made, name, value.copy())
    return made


def explore(start: World, twin: Callable[[World], World] = twin) -> Iterator[World]:
    """Every state that any order of events reaches."""
    seen, todo = {start.key()}, [start]
    while todo:
        world = todo.pop()
        yield world
        for event in events(world):
            after = twin(world)
            event(after)
            if (key := after.key()) not in seen:
                seen.add(key)
                todo.append(after)


def check_promises(w: World) -> None:
    in_flight = sum(isinstance(m[0], KvChunk | KvReady) for m in w.to_decode)
    returning = sum(m.chunks for m in w.to_prefill if isinstance(m, Credit))
    granting = sum(m.credits for m in w.to_prefill if isinstance(m, Grant))
    assert w.sender.credits >= 0
    # Only a repeated message can put one more chunk under way than was granted.
    assert w.sender.credits + in_flight + returning + granting <= CREDITS + w.faults_spent
    if w.used:
        expected = {(la, t): frames_of(la, t, 1) for la in range(LAYERS) for t in range(TOKENS)}
        assert w.received == expected, "decode starts only on KV that is whole and undamaged"
    assert not (w.reading and w.reused), "nobody's pages are reused while beams read them"
    if w.sender.state is SenderState.DONE:
        assert w.receiver.state in (ReceiverState.DONE, ReceiverState.FAILED)


def settle(w: World) -> None:
    """Let time pass, in which leases lapse, until nothing more happens."""
    for _ in range(3):
        lapse(w) if not w.sender.over else None
        while event := next((event for event in events(w) if event not in FAULTS), None):
            event(w)
            check_promises(w)


@pytest.mark.in_turns("fault_count")
@WAYS
@CASES
def test_every_order_keeps_the_promises(
    fault_count: int, forward_tokens: int, hidden: bytes | None, chunk_bytes: int, way: Way
) -> None:
    states = ends = 0
    for world in explore(new_world(fault_count, hidden, forward_tokens, way, chunk_bytes)):
        states += 1
        check_promises(world)
        if not set(events(world)) - FAULTS:
            ends += 1
            if not world.faults_spent:
                assert world.sender.state is SenderState.DONE
                assert world.receiver.state is ReceiverState.DONE
            later = twin(world)
            settle(later)
            assert later.sender.over, "nothing is held for ever"
    assert states > 20 and ends >= 1


@WAYS
def test_twins_are_as_good_as_whole_copies(way: Way) -> None:
    """Else an event would change what another order begins with."""
    found = [
        {world.key() for world in explore(new_world(1, HIDDEN, TOKENS, way, LARGE), how)}
        for how in (twin, copy.deepcopy)
    ]
    assert found[0] == found[1]
