"""Hand-overs of a prefill process over real sockets, against a decode worker that the test plays."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from xgr_runtime.errors import DeadlineExceeded, Fatal, InternalError, Overloaded, WorkerLost
from xgr_runtime.handover import decode_links
from xgr_runtime.handover.decode_links import IDLE
from xgr_runtime.handover.outbound import Outbound
from xgr_runtime.handover.protocol import ASK_EVERY, Chunk, PromptPages, Receiver, ReceiverState
from xgr_runtime.handover.transfer import Transfer
from xgr_runtime.transport import Listener, Poller, Received
from xgr_runtime.wire.messages import (
    MOST_CREDITS,
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Credit,
    Grant,
    HostRegion,
    KvChunk,
    KvReady,
    LinkHello,
    LinkRefused,
    LinkWelcome,
    ModelIdentity,
    Nack,
    Open,
    ProcessId,
    Renew,
    SharedKv,
    ToDecodeData,
    Way,
)

MODEL = ModelIdentity("hash", "bfloat16", 2, 1, 4, 8, 100, 1)
TOKENS, LEASE = 5, 10.0
HIDDEN = bytes(4 * MODEL.hidden)
READER = ProcessId(5, 6)
MEMORY = SharedKv(9, 8, 4, HostRegion(READER, 1, 1), HostRegion(READER, 2, 1))
PAGES = PromptPages(np.array([6, 2], np.int32), np.array([0, 3], np.uint32))


class PlayedKv:
    """Keys and values that tell layer and token apart, in pages that may be mapped."""

    shared: PromptPages | None = PAGES

    def read(self, chunk: Chunk) -> tuple[bytes, bytes]:
        count = MODEL.layer_token_bytes // 2
        keys = b"".join(
            bytes([16 * chunk.first_layer + t]) * count for t in range(chunk.start, chunk.start + chunk.count)
        )
        return keys, keys[::-1]


class BrokenKv(PlayedKv):
    """KV that cannot be read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self, chunk: Chunk) -> tuple[bytes, bytes]:
        raise self.error


class Played:
    """An outbound side and the socket of a decode worker, incarnation 4."""

    def __init__(self, folder: Path, poller: Poller | None) -> None:
        folder.chmod(0o700)
        self.address = f"ipc://{folder}/d"
        self.decode: Listener[Any] = Listener(self.address, ToDecodeData)
        self.reader_lives = True
        self.out = Outbound(
            "prefill-0", 3, MODEL, 2 * MODEL.layer_token_bytes, LEASE, poller, MEMORY, self.alive
        )
        self.poller = poller
        self.peer = b""
        self._poller = Poller()
        self._poller.add(self.decode)

    def alive(self, process: ProcessId) -> bool:
        return process == READER and self.reader_lives

    def open(self, number: int = 1, address: str = "", deadline: float = 60.0) -> Transfer:
        id = AttemptId(1, number, 1, 3, 4)
        return self.out.open(id, TOKENS, address or self.address, deadline, 0.5, PlayedKv(), 0.0)

    def hear(self) -> Received[Any]:
        """The next message but the greeting, which offers our memory."""
        while True:
            while (received := self.decode.receive()) is None:
                self.out.exchange(0.0)
                self._poller.wait(0.01)
            self.peer = received.peer
            if not isinstance(received.message, LinkHello):
                return received
            assert received.message.memory == MEMORY

    def say(self, message: Any, until: Callable[[], bool]) -> None:
        """Send to the outbound side and wait for what it makes of it."""
        assert self.decode.send(self.peer, message)
        while not until():
            self.out.exchange(0.0)


@pytest.fixture(params=[True, False], ids=["poller", "polled"])
def played(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Played]:
    made = Played(tmp_path, Poller() if request.param else None)
    yield made
    made.decode.close()


@pytest.mark.parametrize("hidden", [HIDDEN, None], ids=["hidden", "kv-only"])
def test_a_whole_hand_over(played: Played, hidden: bytes | None) -> None:
    transfer = played.open()
    receiver = Receiver(
        transfer.id, TOKENS, MODEL.layers, MODEL.kv_heads, MODEL.layer_token_bytes, len(HIDDEN)
    )
    opened = played.hear().message
    named = (PAGES.ids.tobytes(), PAGES.generations.tobytes())
    assert opened == Open(transfer.id, TOKENS, 0.5, *named) and receiver.open(opened) is None
    for tokens in (3, TOKENS):  # two forwards, the first of which ends before GRANT
        for layer in range(MODEL.layers):
            transfer.layer_ready(layer, tokens)
    played.say(receiver.grant(1, LEASE), lambda: played.out.credits_out == 0)
    chunks: list[KvChunk] = []
    transfer.prompt_ready(0.25, hidden)
    while receiver.state is not ReceiverState.DONE:
        message, frames = played.hear()[1:]
        if isinstance(message, KvChunk):
            chunks.append(message)
            assert tuple(frames) == PlayedKv().read(
                Chunk(message.first_layer, 0, message.start, message.count)
            )
            reply: Any = receiver.chunk(message, *frames)
        else:
            assert isinstance(message, Commit) and len(frames) == (hidden is not None)
            reply = receiver.commit(message, frames[0] if frames else None) or receiver.release()
        assert not isinstance(reply, Nack) and not transfer.over
        played.decode.send(played.peer, reply)
    assert sum(chunk.count for chunk in chunks) == MODEL.layers * TOKENS
    while not played.out.retire():
        played.out.exchange(0.0)
    assert transfer.over and transfer.failure is None and not played.out.transfers


def hand_over(played: Played, way: Way) -> tuple[Transfer, Receiver]:
    """A prompt of one forward up to its COMMIT, with all that a decode worker says until then."""
    transfer = played.open()
    receiver = Receiver(
        transfer.id, TOKENS, MODEL.layers, MODEL.kv_heads, MODEL.layer_token_bytes, len(HIDDEN)
    )
    assert receiver.open(played.hear().message) is None
    grant = receiver.grant(1, LEASE, way=way, reader=READER if way == "in place" else None)
    played.say(grant, lambda: transfer.sender.way == way)
    for layer in range(MODEL.layers):
        transfer.layer_ready(layer, TOKENS)
    transfer.prompt_ready(0.25, HIDDEN)
    while not isinstance(message := (received := played.hear()).message, Commit):
        assert isinstance(message, KvReady) and not received.frames, "no bytes of KV travel"
        played.decode.send(played.peer, receiver.ready(message))  # type: ignore[arg-type]
    assert receiver.commit(message, received.frames[0]) is None
    return transfer, receiver


@pytest.mark.parametrize("way", ["pull", "in place"])
def test_a_hand_over_without_bytes(played: Played, way: Way) -> None:
    transfer, receiver = hand_over(played, way)
    played.out.exchange(0.0)
    assert not transfer.over and not played.out.retire()
    ack = receiver.release()
    played.say(ack, lambda: transfer.over)
    assert played.out.retire() == [transfer] and transfer.failure is None


def test_a_silent_reader_in_place_is_asked_until_it_lets_go(
    played: Played, caplog: pytest.LogCaptureFixture
) -> None:
    transfer, receiver = hand_over(played, "in place")
    for now in (LEASE, 2 * LEASE):
        played.out.expire(now)
        question, frames = played.hear()[1:]
        assert isinstance(question, Commit) and bytes(frames[0]) == HIDDEN
        assert receiver.commit(question, frames[0]) is None, "it goes on reading"
    assert not played.out.retire() and played.out.outlived_leases == 1
    assert len([r for r in caplog.records if "lives" in r.message]) == 1, "said once"
    played.say(Nack(transfer.id, "the prompt is not read here"), lambda: transfer.over)
    assert played.out.retire() == [transfer]


@pytest.mark.parametrize("end", ["cancel", "deadline", "refused link"])
def test_what_is_read_in_place_is_held_when_its_request_is_over(played: Played, end: str) -> None:
    transfer, receiver = hand_over(played, "in place")
    if end == "cancel":
        transfer.fail("cancelled by the router")
    elif end == "refused link":
        played.say(LinkRefused(4, "greet first"), lambda: transfer.failure is not None)
    played.out.expire(60.0 if end == "deadline" else 1.0)
    assert transfer.failure is not None and not played.out.retire()
    assert played.hear().message == Cancel(transfer.id, transfer.sender.reason)
    assert not played.out.outlived_leases
    assert isinstance(transfer.error, DeadlineExceeded) == (end == "deadline")
    played.say(receiver.release(), lambda: transfer.over)
    assert played.out.retire() == [transfer]


def test_a_dead_reader_in_place_frees_its_pages(played: Played) -> None:
    transfer, _ = hand_over(played, "in place")
    played.out.expire(1.0)
    played.reader_lives = False
    assert not played.out.retire()
    played.out.expire(1.0 + ASK_EVERY)
    assert played.out.retire() == [transfer] and isinstance(transfer.failure, WorkerLost)
    assert played.out.outlived_leases == 0


def test_what_comes_before_the_connection_waits(tmp_path: Path) -> None:
    """Nothing is lost when the decode worker binds after its prompt is computed."""
    tmp_path.chmod(0o700)
    late = f"ipc://{tmp_path}/late"
    out = Outbound("prefill-0", 3, MODEL, 1 << 20, LEASE)
    transfer = out.open(AttemptId(1, 1, 1, 3, 4), TOKENS, late, 60.0, 0.0, PlayedKv(), now=0.0)
    assert not transfer.open_sent and not out.exchange(0.0)
    decode: Listener[Any] = Listener(late, ToDecodeData)
    while not out.exchange(0.0):
        pass
    assert transfer.open_sent
    decode.close()


@pytest.mark.parametrize(
    ("message", "reason"),
    [(Nack, "no pages"), (LinkRefused, "its dtype is float32")],
    ids=["nack", "refused-link"],
)
def test_a_refusal_fails_its_transfers_and_no_others(played: Played, message: Any, reason: str) -> None:
    other = played.open(2, played.address + ".other")
    transfer = played.open()
    played.hear()
    answer = Nack(transfer.id, reason) if message is Nack else LinkRefused(4, reason)
    played.say(answer, lambda: transfer.over)
    assert played.out.retire() == [transfer] and not other.over
    assert isinstance(transfer.failure, WorkerLost) and reason in transfer.failure.message
    assert transfer.failure.elsewhere, "another pair may succeed"
    assert played.hear().message == Cancel(transfer.id, transfer.failure.message)


def test_a_reason_of_our_own_is_final(played: Played) -> None:
    transfer = played.open()
    error = InternalError("the forward failed")
    transfer.give_up(error)
    transfer.give_up(InternalError("and again"))
    assert played.out.retire() == [transfer] and transfer.failure is transfer.error is error
    assert not played.out.transfers and not played.out.retire()


def test_deadlines_and_leases_end_transfers(played: Played) -> None:
    late, unleased, renewed = played.open(1, deadline=5.0), played.open(2), played.open(3)
    while not isinstance(played.hear().message, Open):
        pass
    played.say(Renew(renewed.id, 60.0), lambda: renewed.sender.lease_until == 60.0)
    played.out.expire(4.9)
    assert not played.out.retire()
    played.out.expire(5.0)
    assert played.out.retire() == [late] and isinstance(late.failure, DeadlineExceeded)
    played.out.expire(LEASE)
    assert played.out.retire() == [unleased]
    assert isinstance(unleased.failure, WorkerLost) and "lease" in unleased.failure.message
    assert list(played.out.transfers.values()) == [renewed]


def test_a_deadline_after_the_end_changes_nothing(played: Played) -> None:
    transfer = played.open(deadline=5.0)
    transfer.fail("cancelled")
    played.out.expire(6.0)
    assert transfer.error is None and isinstance(transfer.failure, WorkerLost)


def test_messages_of_no_transfer_are_counted(played: Played) -> None:
    transfer = played.open()
    played.hear()
    unknown = AttemptId(1, 9, 1, 3, 4)
    for message in (LinkWelcome(4), Ack(unknown), Credit(unknown, 1), Grant(unknown, 1, 1.0, 0)):
        played.decode.send(played.peer, message)
    played.say(Nack(transfer.id, "done"), lambda: transfer.over)
    assert played.out.stale_messages == 3


def test_credits_without_bound_end_their_hand_over_alone(played: Played) -> None:
    transfer, other = played.open(), played.open(2)
    while not isinstance(played.hear().message, Open):
        pass
    played.say(Grant(transfer.id, 1, LEASE, 0), lambda: played.out.credits_out == 1)
    for _ in range(2):
        played.decode.send(played.peer, Credit(transfer.id, MOST_CREDITS - 1))
    played.say(Renew(other.id, 60.0), lambda: other.sender.lease_until == 60.0)
    assert transfer.over and "limit" in transfer.sender.reason and not other.over
    assert played.out.credits_out == 0


def test_numbers_that_no_hand_over_has_are_bad_messages(played: Played) -> None:
    transfer = played.open()
    played.hear()
    for message in (
        Credit(transfer.id, 2**63),
        Grant(transfer.id, 1, float("nan"), 0),
        Renew(transfer.id, float("inf")),
        Grant(transfer.id, 1, LEASE, 2**64 - 1),
    ):
        played.decode.send(played.peer, message)
    played.say(Nack(transfer.id, "done"), lambda: transfer.over)
    assert played.out.bad_messages == 4


def test_kv_that_cannot_be_read_ends_its_hand_over_alone(
    played: Played, caplog: pytest.LogCaptureFixture
) -> None:
    transfer, other = played.open(), played.open(2)
    transfer.source = BrokenKv(RuntimeError("a page that is not there"))
    while not isinstance(played.hear().message, Open):
        pass
    for each in (transfer, other):
        each.layer_ready(0, TOKENS)
    played.say(Grant(transfer.id, 1, LEASE, 0), lambda: transfer.over)
    played.say(Grant(other.id, 1, LEASE, 0), lambda: other.sender.credits == 0)
    assert isinstance(transfer.failure, InternalError) and not other.over
    assert "a page that is not there" in caplog.text, "with its traceback"


def test_what_ends_the_process_is_passed_on(played: Played) -> None:
    transfer = played.open()
    transfer.source = BrokenKv(Fatal("the device is lost"))
    played.hear()
    transfer.layer_ready(0, TOKENS)
    played.decode.send(played.peer, Grant(transfer.id, 1, LEASE, 0))
    with pytest.raises(Fatal):
        while True:
            played.out.exchange(0.0)


@pytest.mark.parametrize("why", ["sockets", "links"])
def test_no_room_for_one_more_link_is_not_the_requests_fault(
    played: Played, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    if why == "sockets":
        monkeypatch.setattr(zmq.Context.instance(), "socket", none_left)
    else:
        monkeypatch.setattr(decode_links, "MOST_LINKS", 0)
    with pytest.raises(Overloaded) as raised:
        played.out.connect(played.address)
    assert raised.value.retryable and not played.out.transfers


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:5", "nonsense", ""])
def test_a_refused_address_is_not_the_requests_fault(played: Played, address: str) -> None:
    """The decode worker named it: with another one the request may be served."""
    with pytest.raises(WorkerLost) as raised:
        played.out.connect(address)
    assert raised.value.retryable


def test_a_link_that_nothing_uses_is_closed(played: Played) -> None:
    """A server that outlives many deployments would keep a socket for each decode worker of theirs."""
    transfer = played.open(deadline=1e9)
    played.hear()
    played.out.expire(0.0)
    transfer.sender.renewed(10 * IDLE, 0.0)
    played.out.expire(2 * IDLE)
    assert not transfer.over and not transfer.link.link.socket.closed, "a transfer keeps it open"
    transfer.fail("not wanted")
    played.out.retire()
    played.out.expire(2.9 * IDLE)
    assert not transfer.link.link.socket.closed
    played.out.expire(3 * IDLE)
    assert transfer.link.link.socket.closed
    if played.poller is not None:
        played.poller.wait(0.0)
    again = played.open(2)
    while not isinstance(opened := played.hear().message, Open):
        pass
    assert opened.id == again.id
