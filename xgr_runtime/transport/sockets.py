"""Typed messages over ZeroMQ.

A message is one msgpack frame of a tagged union, followed by raw frames where the message says so. Sending
never blocks: `send` returns False when the peer is gone or its queue is full, and the caller decides.
Whatever a frame holds, receiving gives a message or counts a bad one; it raises nothing.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from xgr_runtime.errors import ConfigError
from xgr_runtime.transport.addresses import is_guarded
from xgr_runtime.transport.curve import check_link, check_listener, guard_link, guard_listener
from xgr_runtime.transport.keyring import Keyring
from xgr_runtime.transport.redial import PAUSE, REFUSALS, Redial, redial
from xgr_runtime.transport.upkeep import Upkeep
from xgr_runtime.wire.messages import PROTOCOL, Message, Number, OtherProtocol

In = TypeVar("In")
Frame = bytes | memoryview

CONTROL_MAX_BYTES = 64 << 20  # an allow list of 16 million leaves
DATA_MAX_BYTES = (4 << 20) + (64 << 10)  # the largest chunk and its header
DATA_HIGH_WATER = 256  # messages of KV that a link holds, should a peer not keep to its credits
WITHDRAWN = 2.0  # seconds until a listener counts as closed, whatever libzmq says
A_TURN = 256  # messages that one turn of a loop takes from one socket, so that no peer can hold it up

_HIGH_WATER = 4096  # messages; bytes are bounded by admission
_BAD_PEERS = 1024  # most that are remembered
_encoder = msgspec.msgpack.Encoder()


class OutOfSockets(ConfigError):
    """This process may open no more sockets."""


class _Greeting(msgspec.Struct, frozen=True):
    """What is read of a greeting in another protocol; the rest of it may look like anything."""

    type: Literal["hello", "worker_hello", "link_hello"]
    protocol: Number


_greetings = msgspec.msgpack.Decoder(_Greeting)


def _decoded(decoder: msgspec.msgpack.Decoder[Any], frame: Frame) -> Any:
    """The message in a frame, `OtherProtocol` for a greeting of another version, None for all else."""
    if (message := _read(decoder, frame)) is not None:
        return message
    greeting = _read(_greetings, frame)
    return OtherProtocol(greeting.protocol) if greeting and greeting.protocol != PROTOCOL else None


def _read(decoder: msgspec.msgpack.Decoder[Any], frame: Frame) -> Any:
    """What a frame holds, or None. Anybody may choose its bytes: they may be nested, large or cut off."""
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError, MemoryError, OverflowError):
        return None


class Received(NamedTuple, Generic[In]):
    """A valid message, who sent it (empty on a connected link), and the raw frames behind it."""

    peer: bytes
    message: In
    frames: list[memoryview]


class _Socket(Generic[In]):
    """What both ends share: options, non-blocking send and receive, a count of bad frames."""

    def __init__(self, kind: int, incoming: Any, max_bytes: int) -> None:
        self.bad_messages = 0
        self._bad_peers: set[bytes] = set()
        with _sockets_left():
            self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        _set_options(self.socket, max_bytes)
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._envelope = 1 if kind == zmq.ROUTER else 0  # a ROUTER puts the peer's identity in front

    def receive(self) -> Received[In] | None:
        """The next valid message, or None when there is none now. Invalid ones are dropped and counted."""
        return next(self.receive_some(), None)

    def receive_some(self, most: int = A_TURN) -> Iterator[Received[In]]:
        """The valid ones of the next `most` messages; whoever waits for the socket is woken for the rest."""
        for _ in range(most):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            received = self._parse([part.buffer for part in parts])
            if received is not None:
                yield received
            else:
                self._count_bad(parts[0].buffer)

    def _count_bad(self, peer: memoryview) -> None:
        self.bad_messages += 1
        if self._envelope and len(self._bad_peers) < _BAD_PEERS:
            self._bad_peers.add(bytes(peer))

    def _parse(self, parts: list[memoryview]) -> Received[In] | None:
        if len(parts) <= self._envelope:
            return None
        message = _decoded(self._decoder, parts[self._envelope])
        if message is None:
            return None
        peer = bytes(parts[0]) if self._envelope else b""
        return Received(peer, message, parts[self._envelope + 1 :])

    def _send(self, parts: list[Any]) -> bool:
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            if isinstance(error, zmq.Again) or error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def close(self) -> None:
        self.socket.close(linger=0)


class Listener(_Socket[In]):
    """The bound end: many peers, told apart by the identity that `receive` reports."""

    def __init__(
        self,
        address: str,
        incoming: Any,
        max_bytes: int = CONTROL_MAX_BYTES,
        keys: Keyring | None = None,
        *,
        high_water: int = _HIGH_WATER,
    ) -> None:
        """`high_water` counts messages that wait here to be received, of one peer."""
        check_listener(address, keys)
        super().__init__(zmq.ROUTER, incoming, max_bytes)
        self.socket.setsockopt(zmq.RCVHWM, high_water)
        guard_listener(self.socket, address, keys)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None
        self.address: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._upkeep = Upkeep(self.socket, address)

    def receive_some(self, most: int = A_TURN) -> Iterator[Received[In]]:
        """See `_Socket`. Whoever listens does this often, so here it is seen that others can still come."""
        self._upkeep.look()
        return super().receive_some(most)

    def withdraw(self, seconds: float = WITHDRAWN) -> None:
        """Close it, and return once nobody listens there any more, so that another may at once.

        libzmq ends a listener beside us, and removes the file of an `ipc://` socket as it does so.
        """
        monitor = self.socket.get_monitor_socket(zmq.EVENT_CLOSED)
        with suppress(zmq.ZMQError):  # somebody else has removed it
            self.socket.unbind(self.address)
            monitor.poll(int(seconds * 1000))
        self.socket.disable_monitor()
        monitor.close(linger=0)
        self.close()

    def take_bad_peers(self) -> set[bytes]:
        """Who sent something that could not be read since this was last asked."""
        bad, self._bad_peers = self._bad_peers, set()
        return bad

    def send(self, peer: bytes, message: Message, *frames: Frame) -> bool:
        """False when the peer is gone or its queue is full."""
        return self._send([peer, _encoder.encode(message), *frames])


class Link(_Socket[In]):
    """The connected end: one peer; reconnects by itself."""

    def __init__(
        self,
        address: str,
        incoming: Any,
        max_bytes: int = CONTROL_MAX_BYTES,
        keys: Keyring | None = None,
        *,
        high_water: int = _HIGH_WATER,
    ) -> None:
        """`high_water` counts messages that wait here to be sent."""
        endpoint = check_link(address, keys)
        super().__init__(zmq.DEALER, incoming, max_bytes)
        self.socket.setsockopt(zmq.SNDHWM, high_water)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # never queue for a peer that is not there
        guard_link(self.socket, address, keys)
        with _sockets_left():
            self._redial = None if is_guarded(endpoint) else Redial(self.socket, endpoint)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {address}: {error.strerror or error}") from None
        self.address = address

    def send(self, message: Message, *frames: Frame) -> bool:
        """False when the peer is gone or its queue is full."""
        sent = self._send([_encoder.encode(message), *frames])
        if not sent and self._redial:
            self._redial.look()
        return sent

    def close(self) -> None:
        if self._redial:
            self._redial.close()
        super().close()


class AsyncLink(Generic[In]):
    """The connected end inside an asyncio loop; tells when the connection breaks."""

    def __init__(self, address: str, incoming: Any, keys: Keyring | None = None) -> None:
        self._endpoint = check_link(address, keys)
        self.address = address
        self.bad_messages = 0
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._taken = 0  # messages
        with _sockets_left():
            self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | REFUSALS)
        # Messages go past asyncio's own socket, which makes several futures for each.
        self._plain: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)
        self._descriptor = int(self._plain.getsockopt(zmq.FD))
        self._loop: asyncio.AbstractEventLoop | None = None  # that watches the socket
        self._waiting: asyncio.Future[None] | None = None  # for a message
        _set_options(self._socket, CONTROL_MAX_BYTES)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        guard_link(self._socket, address, keys)
        try:
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {address}: {error.strerror or error}") from None

    def send(self, message: Message) -> bool:
        """False when the peer is gone or its queue is full."""
        try:
            self._plain.send(_encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            if self._waiting is not None:  # a send can take in the news that a message has arrived
                self._look()
        return True

    async def receive(self) -> In:
        """The next valid message. Invalid ones are dropped and counted. For one task at a time."""
        while True:
            try:
                parts = self._plain.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                await self._readable()
                continue
            self._taken += 1
            if self._taken % A_TURN == 0:
                await asyncio.sleep(0)  # what is here already does not let others run by itself
            message = _decoded(self._decoder, parts[0])
            if message is not None:
                return message  # type: ignore[no-any-return]
            self.bad_messages += 1

    async def _readable(self) -> None:
        """Return when a message may be there; one that comes from now on makes the descriptor readable."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._descriptor, self._look)
        self._waiting = loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _look(self) -> None:
        """Wake who waits if a message is there. To ask also takes in the news, until the next one."""
        here = int(self._plain.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if here and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def disconnected(self) -> None:
        """Return when the connection breaks. One that is refused is tried again meanwhile."""
        while (await recv_monitor_message(self._monitor))["event"] != zmq.EVENT_DISCONNECTED:
            await asyncio.sleep(PAUSE)
            redial(self._socket, self._endpoint)

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        self._loop = None
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


class Poller:
    """Waits for any of several sockets."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def add(self, source: _Socket[Any] | int) -> None:
        """A socket of ours, or any descriptor that can become readable."""
        self._poller.register(source if isinstance(source, int) else source.socket, zmq.POLLIN)

    def remove(self, socket: _Socket[Any]) -> None:
        """Before it is closed."""
        self._poller.unregister(socket.socket)

    def wait(self, seconds: float) -> None:
        """Return when a socket has something, or after `seconds`."""
        self._poller.poll(max(0, int(seconds * 1000 + 0.999)))


@contextmanager
def _sockets_left() -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        raise OutOfSockets(
            f"no socket is left ({error.strerror}): raise the limit of open files (ulimit -n)"
        ) from None


def _set_options(socket: zmq.Socket[Any], max_bytes: int) -> None:
    options: Iterable[tuple[int, int]] = (
        (zmq.LINGER, 0),
        (zmq.SNDHWM, _HIGH_WATER),
        (zmq.RCVHWM, _HIGH_WATER),
        (zmq.MAXMSGSIZE, max_bytes),
        (zmq.HANDSHAKE_IVL, 5_000),
        (zmq.HEARTBEAT_IVL, 2_000),
        (zmq.HEARTBEAT_TIMEOUT, 10_000),
        (zmq.RECONNECT_IVL, 50),
        (zmq.RECONNECT_IVL_MAX, 1_000),
    )
    for option, value in options:
        socket.setsockopt(option, value)
