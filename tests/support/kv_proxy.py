"""A proxy on a data link: passes every message on, and can hold a transfer between two chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from xgr_runtime.wire.messages import Ack, Commit, KvChunk, KvReady, Message, ToDecodeData, ToPrefillData

FromPrefill = msgspec.msgpack.Decoder(ToDecodeData)
FromDecode = msgspec.msgpack.Decoder(ToPrefillData)


class KvProxy:
    """Stands at `address` for the decode worker that listens at `target`.

    `hold_after(n)` lets n chunks of each transfer pass; the prefill worker that first sends another one is
    held until `release()`. `held` is set when that chunk waits, `held_chunk` is its header. `on_ack` and
    `on_commit` are called with each ACK and COMMIT, before it passes. A chunk is one on any way of KV.
    """

    def __init__(self, address: str, target: str) -> None:
        self.address = address
        self.chunks = 0
        self.held = threading.Event()
        self.held_chunk: KvChunk | KvReady | None = None
        self.on_ack: Callable[[Ack], None] | None = None
        self.on_commit: Callable[[Commit], None] | None = None
        self._target = target
        self._limit: int | None = None
        self._held_peer: bytes | None = None
        self._waiting: list[list[bytes]] = []
        self._stop = threading.Event()
        self._front: Any = zmq.Context.instance().socket(zmq.ROUTER)
        self._front.bind(address)
        self._backs: dict[bytes, Any] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold_after(self, chunks: int) -> None:
        self._limit = chunks

    def release(self) -> None:
        self._limit = None

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for socket in [self._front, *self._backs.values()]:
            socket.close(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(5))
            if self._limit is None and self._waiting:
                for parts in self._waiting:
                    self._to_decode(parts, poller)
                self._waiting.clear()
            if self._front in ready:
                self._from_prefill(self._front.recv_multipart(), poller)
            for peer, back in self._backs.items():
                if back in ready:
                    self._to_prefill(peer, back.recv_multipart())

    def _from_prefill(self, parts: list[bytes], poller: zmq.Poller) -> None:
        message: Message = FromPrefill.decode(parts[1])
        if isinstance(message, Commit) and self.on_commit:
            self.on_commit(message)
        chunk = message if isinstance(message, KvChunk | KvReady) else None
        full = chunk is not None and self._limit is not None and chunk.sequence >= self._limit
        if full and not self.held.is_set():
            self.held_chunk = chunk
            self.held.set()
            self._held_peer = parts[0]
        if parts[0] == self._held_peer and self._limit is not None:
            self._waiting.append(parts)
        else:
            self.chunks += chunk is not None
            self._to_decode(parts, poller)

    def _to_decode(self, parts: list[bytes], poller: zmq.Poller) -> None:
        peer, *rest = parts
        if peer not in self._backs:
            back: Any = zmq.Context.instance().socket(zmq.DEALER)
            back.connect(self._target)
            poller.register(back, zmq.POLLIN)
            self._backs[peer] = back
        self._backs[peer].send_multipart(rest)

    def _to_prefill(self, peer: bytes, parts: list[bytes]) -> None:
        message: Message = FromDecode.decode(parts[0])
        if isinstance(message, Ack) and self.on_ack:
            self.on_ack(message)
        self._front.send_multipart([peer, *parts])
