"""The rules of the hand-over one by one: what a receiver refuses, and how prompts are cut into chunks."""

from typing import Any

import msgspec
import numpy as np
import pytest

from xgr_runtime.handover.protocol import (
    ASK_EVERY,
    Chunk,
    ChunkPlan,
    PromptPages,
    Receiver,
    ReceiverState,
    Sender,
    SenderState,
    chunk_checksum,
    digest_of,
    pages_named,
    range_checksum,
)
from xgr_runtime.wire.messages import (
    MOST_CREDITS,
    MOST_TEXT,
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Credit,
    Grant,
    HostRegion,
    KvChunk,
    KvReady,
    Nack,
    Open,
    ProcessId,
    Renew,
    SharedKv,
    Way,
)

ID = AttemptId(1, 2, 1, 3, 4)
READER = ProcessId(5, 6)
PAGES = PromptPages(np.array([3, 1], np.int32), np.array([7, 0], np.uint32))


def streaming_receiver(tokens: int = 4, layers: int = 2, held: int = 0, way: Way = "frames") -> Receiver:
    receiver = Receiver(ID, tokens, layers, heads=1, layer_token_bytes=8, hidden_bytes=4)
    assert receiver.open(Open(ID, tokens, 0.0)) is None
    reader = READER if way == "in place" else None
    receiver.grant(credits=2, lease=10.0, held_tokens=held, way=way, reader=reader)
    return receiver


def chunk(receiver: Receiver, **changes: Any) -> Credit | Nack | None:
    """Offer the first chunk [layer 0, tokens 0 and 1) with some fields changed."""
    keys = changes.pop("keys", b"kkkkKKKK")
    values = changes.pop("values", b"vvvvVVVV")
    fields = dict(sequence=0, first_layer=0, last_layer=1, start=0, count=2, first_head=0, heads=1) | changes
    checksum = fields.pop("checksum", chunk_checksum(keys, values))
    return receiver.chunk(KvChunk(ID, checksum=checksum, **fields), keys, values)


def test_a_good_chunk_returns_its_credit() -> None:
    assert chunk(streaming_receiver()) == Credit(ID, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 1},
        {"first_layer": -1},
        {"first_layer": 1, "last_layer": 1},
        {"last_layer": 3},
        {"last_layer": 2**63 - 1},
        {"start": 1},
        {"start": -1},
        {"count": 0},
        {"count": 5},
        {"count": 2**62},
        {"first_head": 1},
        {"heads": 0},
        {"heads": 2},
        {"keys": b"short"},
        {"values": b"much longer than it says"},
        {"checksum": 7},
    ],
    ids=str,
)
def test_a_bad_chunk_fails_the_attempt(changes: dict[str, Any]) -> None:
    receiver = streaming_receiver()
    assert isinstance(chunk(receiver, **changes), Nack)
    assert receiver.state is ReceiverState.FAILED and receiver.reason
    assert chunk(receiver) is None, "what comes after the end is ignored"


def test_commit_before_all_chunks_fails() -> None:
    receiver = streaming_receiver()
    chunk(receiver)
    commit = Commit(ID, 1, 0, chunk_checksum(b"hhhh", b""), 0.1)
    assert isinstance(receiver.commit(commit, b"hhhh"), Nack)


def whole_transfer(
    tokens: int, held: int, hidden: bytes | None = b"hhhh"
) -> tuple[Sender, Receiver, list[KvChunk]]:
    """Run a transfer of two layers to just before COMMIT."""
    receiver = streaming_receiver(tokens, 2, held)
    sender = Sender(ID, ChunkPlan(2, tokens, 8, chunk_bytes=16, heads=1), now=0.0, lease=10.0)
    sender.granted(Grant(ID, 100, 10.0, held), now=0.0)
    for layer in range(2):
        sender.layer_ready(layer, tokens)
    sender.prompt_ready(0.1, None if hidden is None else chunk_checksum(hidden, b""))
    sent = []
    while (piece := sender.next_chunk()) is not None:
        keys = values = bytes(4 * piece.count)
        message = sender.chunk_message(chunk_checksum(keys, values))
        assert receiver.chunk(message, keys, values) == Credit(ID, 1)
        sender.chunk_sent(message.checksum)
        sent.append(message)
    return sender, receiver, sent


@pytest.mark.parametrize("held", [0, 1, 3, 5], ids=lambda n: f"held={n}")
def test_held_tokens_are_not_sent(held: int) -> None:
    sender, receiver, sent = whole_transfer(tokens=5, held=held)
    assert sum(message.count for message in sent) == 2 * (5 - held)
    commit = sender.commit()
    assert commit is not None and receiver.commit(commit, b"hhhh") is None
    assert receiver.release() == Ack(ID)


@pytest.mark.parametrize("field", ["chunks", "digest", "checksum"])
def test_a_commit_that_lies_fails(field: str) -> None:
    sender, receiver, _ = whole_transfer(tokens=5, held=0)
    commit = sender.commit()
    assert commit is not None
    lie = msgspec.structs.replace(commit, **{field: getattr(commit, field) + 1})
    assert isinstance(receiver.commit(lie, b"hhhh"), Nack)


def test_a_hidden_state_may_be_left_out() -> None:
    sender, receiver, _ = whole_transfer(tokens=5, held=0, hidden=None)
    commit = sender.commit()
    assert commit is not None and commit.checksum is None
    assert receiver.commit(commit, None) is None and receiver.state is ReceiverState.READY
    assert receiver.release() == Ack(ID) and receiver.state is ReceiverState.DONE
    assert receiver.release() is None, "pages are given back once"


@pytest.mark.parametrize(
    ("announced", "frame"),
    [
        pytest.param(b"hhhh", None, id="checksum-without-frame"),
        pytest.param(None, b"hhhh", id="frame-without-checksum"),
        pytest.param(None, b"", id="empty-frame-without-checksum"),
        pytest.param(b"hhhhh", b"hhhhh", id="too-long"),
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"hhhh", b"hhhi", id="damaged"),
    ],
)
def test_a_hidden_state_other_than_announced_fails(announced: bytes | None, frame: bytes | None) -> None:
    sender, receiver, _ = whole_transfer(tokens=5, held=0, hidden=announced)
    commit = sender.commit()
    assert commit is not None
    assert isinstance(receiver.commit(commit, frame), Nack) and receiver.state is ReceiverState.FAILED


def test_an_open_of_another_prompt_fails() -> None:
    receiver = Receiver(ID, 4, 2, heads=1, layer_token_bytes=8, hidden_bytes=4)
    assert isinstance(receiver.open(Open(ID, 5, 0.0)), Nack)


@pytest.mark.parametrize(("credits", "held"), [(0, 0), (1, -1), (1, 6), (MOST_CREDITS + 1, 0), (2**63, 0)])
def test_a_grant_out_of_range_fails_the_sender(credits: int, held: int) -> None:
    sender = Sender(ID, ChunkPlan(2, 5, 8, 16, heads=1), now=0.0, lease=10.0)
    sender.granted(Grant(ID, credits, 1.0, held), now=0.0)
    assert sender.over and sender.next_chunk() is None


@pytest.mark.parametrize("chunks", [MOST_CREDITS, 2**63 - 1])
def test_more_credits_than_there_can_be_end_the_hand_over(chunks: int) -> None:
    sender = Sender(ID, ChunkPlan(2, 5, 8, 16, heads=1), now=0.0, lease=10.0)
    sender.granted(Grant(ID, 1, 1.0, 0), now=0.0)
    sender.credited(MOST_CREDITS - 1)
    assert sender.credits == MOST_CREDITS and not sender.over
    sender.credited(chunks)
    assert sender.over and str(MOST_CREDITS) in sender.reason and not sender.credits


def test_a_reason_is_as_long_as_a_message_may_carry() -> None:
    receiver = streaming_receiver()
    sender = Sender(ID, ChunkPlan(2, 5, 8, 16, heads=1), now=0.0, lease=10.0)
    sender.fail("x" * 2 * MOST_TEXT)
    assert len(receiver.fail("x" * 2 * MOST_TEXT).reason) == len(sender.reason) == MOST_TEXT


def test_a_renewed_lease_holds_longer() -> None:
    receiver = streaming_receiver()
    sender = Sender(ID, ChunkPlan(2, 4, 8, 16, heads=1), now=0.0, lease=10.0)
    assert receiver.renew(10.0) == Renew(ID, 10.0)
    sender.renewed(10.0, now=8.0)
    sender.expire(17.9, lambda reader: True)
    assert not sender.over
    sender.expire(18.0, lambda reader: True)
    assert sender.over and sender.reason == "the lease lapsed", "only who reads in place holds longer"


@pytest.mark.parametrize(
    ("chunk_bytes", "start", "end", "expected"),
    [
        (16, 0, 4, [(0, 2), (2, 2)]),
        (16, 0, 5, [(0, 2), (2, 2), (4, 1)]),
        (16, 1, 4, [(1, 2), (3, 1)]),
        (1, 3, 5, [(3, 1), (4, 1)]),
        (1 << 20, 0, 5, [(0, 5)]),
        (16, 5, 5, []),
        (16, 5, 3, []),
    ],
)
def test_a_layer_is_cut_in_token_order(
    chunk_bytes: int, start: int, end: int, expected: list[tuple[int, int]]
) -> None:
    plan = ChunkPlan(3, 5, 8, chunk_bytes, heads=1)
    assert plan.cut(1, start, end) == [Chunk(1, 2, first, count) for first, count in expected]


def told_now(sender: Sender) -> list[Chunk]:
    told = []
    while (chunk := sender.next_chunk()) is not None:
        told.append(chunk)
        sender.chunk_sent(0)
    return told


def sent_now(sender: Sender) -> list[tuple[int, int, int]]:
    """(layer, start, count) of all that may leave, sent."""
    return [(chunk.first_layer, chunk.start, chunk.count) for chunk in told_now(sender)]


def test_several_forwards_send_each_token_of_each_layer_once() -> None:
    sender = Sender(ID, ChunkPlan(2, 5, 8, chunk_bytes=16, heads=1), now=0.0, lease=10.0)
    sender.layer_ready(0, 2)
    sender.granted(Grant(ID, 100, 10.0, 1), now=0.0)
    assert sent_now(sender) == [(0, 1, 1)], "the receiver holds token 0"
    sender.layer_ready(1, 2)
    sender.layer_ready(0, 5)
    assert sent_now(sender) == [(1, 1, 1), (0, 2, 2), (0, 4, 1)]
    sender.layer_ready(0, 2)  # the second forward failed and is repeated after the first
    sender.layer_ready(0, 5)
    assert sent_now(sender) == [] and sender.commit() is None
    sender.layer_ready(1, 5)
    sender.prompt_ready(0.1, None)
    assert sent_now(sender) == [(1, 2, 2), (1, 4, 1)] and sender.commit() is not None


@pytest.mark.parametrize("held", [2, 3, 4], ids="held={}".format)
def test_held_tokens_may_end_in_any_forward(held: int) -> None:
    sender = Sender(ID, ChunkPlan(1, 5, 8, chunk_bytes=1 << 20, heads=1), now=0.0, lease=10.0)
    sender.granted(Grant(ID, 100, 10.0, held), now=0.0)
    sender.layer_ready(0, 3)
    sender.layer_ready(0, 5)
    sent = sent_now(sender)
    assert [token for _, start, count in sent for token in range(start, start + count)] == [*range(held, 5)]


def test_layers_that_come_out_of_order_are_our_bug() -> None:
    sender = Sender(ID, ChunkPlan(2, 5, 8, 16, heads=1), now=0.0, lease=10.0)
    with pytest.raises(AssertionError, match="in order"):
        sender.layer_ready(1, 5)
    with pytest.raises(AssertionError, match="in order"):
        sender.layer_ready(0, 6)
    with pytest.raises(AssertionError, match="last token"):
        sender.prompt_ready(0.1, None)


# --- where the receiver reads the sender's memory ---


def descriptor(**changes: Any) -> KvReady:
    """Layer 0 of tokens 0 and 1, with some fields changed."""
    fields = dict(sequence=0, first_layer=0, last_layer=1, start=0, count=2, first_head=0, heads=1) | changes
    return KvReady(ID, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence": 1},
        {"first_layer": -1},
        {"last_layer": 3},
        {"last_layer": 2**63 - 1},
        {"start": 1},
        {"start": -1},
        {"start": 2**64 - 1},
        {"count": 0},
        {"count": 5},
        {"count": 2**64 - 1},
        {"first_head": 1},
        {"heads": 0},
        {"heads": 2**64 - 1},
    ],
    ids=str,
)
def test_a_bad_descriptor_fails_the_attempt(changes: dict[str, Any]) -> None:
    receiver = streaming_receiver(way="pull")
    assert isinstance(receiver.ready(descriptor(**changes)), Nack)
    assert receiver.state is ReceiverState.FAILED and receiver.ready(descriptor()) is None


def test_a_descriptor_may_span_layers() -> None:
    receiver = streaming_receiver(way="pull")
    whole = descriptor(last_layer=2, count=4)
    assert receiver.ready(whole) == Credit(ID, 1)
    commit = Commit(ID, 1, digest_of([range_checksum(whole)]), None, 0.1)
    assert receiver.commit(commit, None) is None and receiver.release() == Ack(ID)


@pytest.mark.parametrize("way", ["pull", "in place"])
def test_frames_on_another_way_fail_the_attempt(way: Way) -> None:
    assert isinstance(chunk(streaming_receiver(way=way)), Nack)


@pytest.mark.parametrize("way", ["frames", "in place"])
def test_descriptors_on_another_way_fail_the_attempt(way: Way) -> None:
    assert isinstance(streaming_receiver(way=way).ready(descriptor()), Nack)


def offering(way: Way, tokens: int = 4, now: float = 0.0) -> Sender:
    """A sender whose prompt may be read where it is, and is, this way."""
    sender = Sender(ID, ChunkPlan(2, tokens, 8, chunk_bytes=8, heads=1), now=now, lease=10.0, pages=PAGES)
    sender.granted(Grant(ID, 2, 10.0, 0, way, READER if way == "in place" else None), now=now)
    return sender


def committed(way: Way) -> Sender:
    sender = offering(way)
    for layer in range(2):
        sender.layer_ready(layer, 4)
    sender.prompt_ready(0.1, None)
    while sender.next_chunk() is not None:
        sender.credited(1)
        sender.chunk_sent(range_checksum(sender.ready_message()))
    assert sender.commit() is not None
    sender.commit_sent()
    return sender


def test_open_says_where_the_prompt_lies() -> None:
    opened = Sender(ID, ChunkPlan(2, 4, 8, 8, heads=1), 0.0, 10.0, PAGES).open(0.5)
    memory = SharedKv(9, 4, 2, HostRegion(READER, 1, 1), HostRegion(READER, 2, 1))
    named = pages_named(opened, memory)
    assert named is not None
    assert named.ids.tolist() == [3, 1] and named.generations.tolist() == [7, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"pages": b""},
        {"pages": PAGES.ids.tobytes()[:-1]},
        {"pages": PAGES.ids[:1].tobytes(), "generations": PAGES.generations[:1].tobytes()},
        {"pages": np.array([3, 3], np.int32).tobytes()},
        {"pages": np.array([3, -1], np.int32).tobytes()},
        {"pages": np.array([3, 4], np.int32).tobytes()},
        {"generations": b""},
        {"prompt_tokens": 5},
    ],
    ids=[
        "none",
        "half-a-number",
        "too-few",
        "twice-the-same",
        "negative",
        "beyond-the-pool",
        "no-generations",
        "a-longer-prompt",
    ],
)
def test_pages_that_cannot_be_the_prompts(changes: dict[str, Any]) -> None:
    memory = SharedKv(9, 4, 2, HostRegion(READER, 1, 1), HostRegion(READER, 2, 1))
    opened = Open(ID, 4, 0.0, PAGES.ids.tobytes(), PAGES.generations.tobytes())
    assert pages_named(opened, memory) is not None
    assert pages_named(msgspec.structs.replace(opened, **changes), memory) is None


@pytest.mark.parametrize("way", ["pull", "in place"])
def test_memory_that_was_not_offered_is_not_granted(way: Way) -> None:
    sender = Sender(ID, ChunkPlan(2, 4, 8, 8, heads=1), now=0.0, lease=10.0)
    sender.granted(Grant(ID, 2, 10.0, 0, way, READER), now=0.0)
    assert sender.over and "not offered" in sender.reason


def test_who_reads_in_place_must_say_who_that_is() -> None:
    sender = Sender(ID, ChunkPlan(2, 4, 8, 8, heads=1), now=0.0, lease=10.0, pages=PAGES)
    sender.granted(Grant(ID, 2, 10.0, 0, "in place"), now=0.0)
    assert sender.over


def test_a_layer_is_told_in_one_piece_to_whoever_pulls() -> None:
    sender = offering("pull")
    sender.layer_ready(0, 3)
    sender.layer_ready(1, 3)
    sender.layer_ready(0, 4)
    assert sent_now(sender) == [(0, 0, 3), (1, 0, 3)], "each spends a credit"
    sender.credited(1)
    assert sent_now(sender) == [(0, 3, 1)]


def test_small_layers_are_told_together() -> None:
    sender = Sender(ID, ChunkPlan(4, 4, 8, chunk_bytes=64, heads=1), now=0.0, lease=10.0, pages=PAGES)
    sender.granted(Grant(ID, 9, 10.0, 0, "pull"), now=0.0)
    for layer in range(4):
        assert not told_now(sender), "more are to come"
        sender.layer_ready(layer, 2)
    assert told_now(sender) == [Chunk(0, 4, 0, 2)]
    for layer in range(4):
        sender.layer_ready(layer, 4)
    assert told_now(sender) == [Chunk(0, 4, 2, 2)]


def test_layers_of_two_forwards_are_not_mixed() -> None:
    """The receiver's pages came while the second forward had done one layer."""
    sender = Sender(ID, ChunkPlan(3, 4, 8, chunk_bytes=64, heads=1), now=0.0, lease=10.0, pages=PAGES)
    for layer in range(3):
        sender.layer_ready(layer, 3)
    sender.layer_ready(0, 4)
    sender.granted(Grant(ID, 9, 10.0, 0, "pull"), now=0.0)
    assert told_now(sender) == [Chunk(0, 1, 0, 4), Chunk(1, 3, 0, 3)]
    sender.layer_ready(1, 4)
    assert not told_now(sender)
    sender.layer_ready(2, 4)
    assert told_now(sender) == [Chunk(1, 3, 3, 1)]


def test_in_place_nothing_is_sent_but_the_commit() -> None:
    sender = offering("in place")
    sender.layer_ready(0, 4)
    sender.layer_ready(1, 4)
    assert sender.next_chunk() is None and sender.commit() is None and not sender.credits
    sender.prompt_ready(0.1, None)
    commit = sender.commit()
    assert commit is not None and commit.chunks == 0
    receiver = streaming_receiver(way="in place")
    assert receiver.commit(commit, None) is None and receiver.state is ReceiverState.READY
    assert receiver.renew(10.0) == Renew(ID, 10.0), "it is held while beams read it"
    assert receiver.release() == Ack(ID) and receiver.renew(10.0) is None


def test_pages_that_were_reused_meanwhile_fail_the_commit() -> None:
    for way in ("pull", "in place"):
        receiver = streaming_receiver(way=way)  # type: ignore[arg-type]
        checksums = []
        if way == "pull":
            receiver.ready(descriptor(last_layer=2, count=4))
            checksums = [range_checksum(descriptor(last_layer=2, count=4))]
        commit = Commit(ID, len(checksums), digest_of(checksums), None, 0.1)
        assert isinstance(receiver.commit(commit, None, intact=False), Nack)
        assert receiver.state is ReceiverState.FAILED and receiver.release() is None


@pytest.mark.parametrize("way", ["frames", "pull"])
def test_a_lapsed_lease_frees_what_is_copied(way: Way) -> None:
    sender = committed(way)
    assert not sender.expire(10.0, lambda reader: True) and sender.over


def test_a_living_reader_holds_pages_beyond_its_lease() -> None:
    sender = committed("in place")
    for now in (10.0, 10.0 + ASK_EVERY, 500.0):
        assert sender.expire(now, lambda reader: reader == READER) and not sender.over
        assert not sender.expire(now + ASK_EVERY / 2, lambda reader: False), "it was asked just now"
        assert sender.commit() is not None, "the question"
        sender.commit_sent()
        assert sender.commit() is None
    sender.acknowledged()
    assert sender.state is SenderState.DONE and sender.over


def test_a_dead_reader_frees_its_pages() -> None:
    """Long before its lease lapses, which whoever is started in its place would have to wait for."""
    sender = committed("in place")
    assert not sender.expire(0.1, lambda reader: True) and not sender.over
    assert not sender.expire(0.1 + ASK_EVERY / 2, lambda reader: False) and not sender.over, "looked just now"
    assert not sender.expire(0.1 + ASK_EVERY, lambda reader: False)
    assert sender.over and "died" in sender.reason and sender.commit() is None and sender.cancel() is None


def test_before_the_commit_nobody_reads_in_place() -> None:
    sender = offering("in place")
    assert not sender.expire(10.0, lambda reader: True) and sender.over


@pytest.mark.parametrize("end", ["ack", "nack", "death"])
def test_a_request_that_is_over_holds_its_pages_until_the_reader_lets_go(end: str) -> None:
    sender = committed("in place")
    sender.fail("cancelled by the router")
    assert sender.state is SenderState.FAILED and not sender.over
    assert not sender.expire(0.1, lambda reader: True), "no lease has lapsed"
    assert sender.cancel() == Cancel(ID, "cancelled by the router"), "it is asked at once"
    assert sender.commit() is None
    sender.cancel_sent()
    assert sender.cancel() is None
    sender.renewed(100.0, 0.2)
    if end == "ack":
        sender.acknowledged()
    elif end == "nack":
        sender.refused("not read here")
    else:
        sender.expire(0.1 + ASK_EVERY, lambda reader: False)
    assert sender.over and sender.reason == "cancelled by the router"
