"""Sender and receiver in every order of events: a small transfer, explored exhaustively.

The world is one sender, one receiver and the two ordered channels between them. From the first state, every
event that can happen is tried, from every state that this reaches; each state must keep the promises below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from xgr_runtime.handover import (
    ChunkPlan,
    Receiver,
    ReceiverState,
    Sender,
    SenderState,
    chunk_checksum,
)
from xgr_runtime.messages import (
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Credit,
    Grant,
    KvChunk,
    Nack,
    Open,
    ProcessId,
)

ID = AttemptId(router=1, request=2, attempt=1, prefill=3, decode=4)
LAYERS, TOKENS, TOKEN_BYTES, CREDITS = 2, 2, 2, 2
FORWARDS = pytest.mark.parametrize("forward_tokens", [TOKENS, 1], ids="tokens-per-forward={}".format)
HIDDEN = b"hiddn"
WITH_HIDDEN = pytest.mark.parametrize("hidden", [HIDDEN, None], ids=["hidden", "kv-only"])
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

    def key(self) -> str:
        """Two worlds with one key behave alike."""
        s, r = vars(self.sender), vars(self.receiver)
        return repr(
            (s, r, self.to_decode, self.to_prefill, self.layers_ready, self.hidden_ready, self.faults)
        )


def new_world(faults: int, hidden: bytes | None, forward_tokens: int) -> World:
    plan = ChunkPlan(LAYERS, TOKENS, TOKEN_BYTES, chunk_bytes=TOKEN_BYTES)
    sender = Sender(ID, plan, now=0.0, lease=LEASE)
    receiver = Receiver(ID, TOKENS, LAYERS, TOKEN_BYTES, len(HIDDEN))
    return World(
        sender, receiver, hidden, [(sender.open(0.0),)], faults=faults, forward_tokens=forward_tokens
    )


Event = Callable[[World], None]


def nobody_lives(reader: ProcessId) -> bool:
    return False


def spend_fault(w: World) -> None:
    w.faults -= 1
    w.faults_spent += 1


def layers_to_compute(w: World) -> int:
    return LAYERS * TOKENS // w.forward_tokens


def compute_layer(w: World) -> None:
    forward, layer = divmod(w.layers_ready, LAYERS)
    w.sender.layer_ready(layer, (forward + 1) * w.forward_tokens)
    w.layers_ready += 1


def finish_prompt(w: World) -> None:
    w.hidden_ready = True
    w.sender.prompt_ready(0.1, None if w.hidden is None else chunk_checksum(w.hidden, b""))


def send_chunk(w: World) -> None:
    chunk = w.sender.next_chunk()
    assert chunk is not None
    keys, values = frames_of(chunk.first_layer, chunk.start, chunk.count)
    checksum = chunk_checksum(keys, values)
    w.to_decode.append((w.sender.chunk_message(checksum), keys, values))
    w.sender.chunk_sent(checksum)


def send_commit(w: World) -> None:
    commit = w.sender.commit()
    assert commit is not None
    w.to_decode.append((commit, w.hidden))
    w.sender.commit_sent()


def grant(w: World) -> None:
    w.to_prefill.append(w.receiver.grant(CREDITS, LEASE))


def deliver_to_decode(w: World) -> None:
    message, *frames = w.to_decode.pop(0)
    reply: Any = None
    match message:
        case Open():
            reply = w.receiver.open(message)
        case KvChunk():
            reply = w.receiver.chunk(message, *frames)
            if isinstance(reply, Credit):
                w.received[message.first_layer, message.start] = (frames[0], frames[1])
        case Commit():
            reply = w.receiver.commit(message, frames[0]) or w.receiver.release()
        case Cancel():
            w.receiver.fail("cancelled")
    if reply is not None:
        w.to_prefill.append(reply)


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
    w.to_decode.append((Cancel(ID, w.sender.reason),))


def receiver_fails(w: World) -> None:
    spend_fault(w)
    w.to_prefill.append(w.receiver.fail("deadline"))


def lease_lapses(w: World) -> None:
    spend_fault(w)
    w.sender.expire(LEASE, nobody_lives)
    assert w.sender.over
    w.to_decode.append((Cancel(ID, w.sender.reason),))


def lose_message(w: World) -> None:
    spend_fault(w)
    w.to_decode.pop(0)


def repeat_message(w: World) -> None:
    spend_fault(w)
    w.to_decode.insert(0, w.to_decode[0])


def damage_chunk(w: World) -> None:
    spend_fault(w)
    message, keys, values = w.to_decode[0]
    w.to_decode[0] = (message, bytes(255 - byte for byte in keys), values)


FAULTS = {sender_fails, lease_lapses, receiver_fails, lose_message, repeat_message, damage_chunk}


def events(w: World) -> Iterator[Event]:
    """All that can happen next."""
    if not w.sender.over and w.layers_ready < layers_to_compute(w):
        yield compute_layer
    if not w.sender.over and w.layers_ready == layers_to_compute(w) and not w.hidden_ready:
        yield finish_prompt
    if w.sender.next_chunk() is not None:
        yield send_chunk
    if w.sender.commit() is not None:
        yield send_commit
    if w.receiver.wants_pages:
        yield grant
    if w.to_decode:
        yield deliver_to_decode
    if w.to_prefill:
        yield deliver_to_prefill
    if w.faults:
        yield from faults(w)


def faults(w: World) -> Iterator[Event]:
    if not w.sender.over:
        yield sender_fails
        yield lease_lapses
    if w.receiver.state is not ReceiverState.FAILED:
        yield receiver_fails
    if w.to_decode:
        yield lose_message
        yield repeat_message
        if isinstance(w.to_decode[0][0], KvChunk):
            yield damage_chunk


def explore(start: World) -> Iterator[World]:
    """Every state that any order of events reaches."""
    seen, todo = {start.key()}, [start]
    while todo:
        world = todo.pop()
        yield world
        for event in events(world):
            after = copy.deepcopy(world)
            event(after)
            if (key := after.key()) not in seen:
                seen.add(key)
                todo.append(after)


def check_promises(w: World) -> None:
    in_flight = sum(isinstance(m[0], KvChunk) for m in w.to_decode)
    returning = sum(m.chunks for m in w.to_prefill if isinstance(m, Credit))
    granting = sum(m.credits for m in w.to_prefill if isinstance(m, Grant))
    assert w.sender.credits >= 0
    # Only a repeated message can put one more chunk under way than was granted.
    assert w.sender.credits + in_flight + returning + granting <= CREDITS + w.faults_spent
    if w.receiver.state is ReceiverState.DONE:
        expected = {(la, t): frames_of(la, t, 1) for la in range(LAYERS) for t in range(TOKENS)}
        assert w.received == expected, "decode starts only on KV that is whole and undamaged"
    if w.sender.state is SenderState.DONE:
        assert w.receiver.state in (ReceiverState.DONE, ReceiverState.FAILED)


@WITH_HIDDEN
@FORWARDS
@pytest.mark.parametrize("fault_count", [0, 1, 2], ids=lambda n: f"faults={n}")
def test_every_order_keeps_the_promises(fault_count: int, forward_tokens: int, hidden: bytes | None) -> None:
    states = ends = 0
    for world in explore(new_world(fault_count, hidden, forward_tokens)):
        states += 1
        check_promises(world)
        if not set(events(world)) - FAULTS:
            ends += 1
            if not world.faults_spent:
                assert world.sender.state is SenderState.DONE
                assert world.receiver.state is ReceiverState.DONE
            elif not world.sender.over:
                # A lost message leaves the sender waiting; the lease then frees its pages.
                world.sender.expire(LEASE, nobody_lives)
                assert world.sender.over, "nothing is held for ever"
    assert states > 50 and ends >= 1
