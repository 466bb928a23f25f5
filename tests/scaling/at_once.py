"""Workers that answer at once, so that a router is all that a request costs: one process plays all of them.

python tests/scaling/at_once.py FOLDER PREFILL DECODE LEAVES

Listens at FOLDER/p0 ..., FOLDER/d0 ... and says `ready`. What it answers to a search is sound for a catalog
of so many leaves without filters, and has nothing to do with the prompt.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xgr_runtime.transport import Listener, Poller
from xgr_runtime.wire.messages import (
    PROTOCOL,
    Committed,
    DecodeRequest,
    Hello,
    Limits,
    Load,
    ModelIdentity,
    PrefillRequest,
    Result,
    Role,
    StepCost,
    Timing,
    ToDecode,
    ToPrefill,
    WorkerHello,
)

MODEL = ModelIdentity("hash", "float32", 28, 8, 128, 2048, 1024, 1)
LOAD = Load(0, 0, 0, 1 << 20, 0, 0, 0, {}, StepCost(1e-5, 1e-8, 1e-12))
TIMING = Timing(1e-5, 1e-5, 0.0, 1e-5, 1e-5)
DRAWN = 64  # answers that are made before


class AtOnce:
    """One worker."""

    def __init__(self, address: str, role: Role, incarnation: int, answers: Answers) -> None:
        self.role, self.incarnation, self.answers = role, incarnation, answers
        self.listener: Listener[Any] = Listener(address, ToPrefill if role == "prefill" else ToDecode)

    def serve(self) -> None:
        for peer, message, _ in self.listener.receive_some():
            if isinstance(message, Hello):
                self.listener.send(peer, self.hello(message))
            elif isinstance(message, DecodeRequest):
                self.listener.send(peer, Committed(message.id))
                leaves, scores = self.answers.next(message.results)
                self.listener.send(peer, Result(message.id, leaves, scores, TIMING))
            elif not isinstance(message, PrefillRequest):
                raise SystemExit(f"nobody should have to send {message}")

    def hello(self, hello: Hello) -> WorkerHello:
        return WorkerHello(
            PROTOCOL,
            self.role,
            f"{self.role}-{self.incarnation}",
            self.incarnation,
            MODEL,
            "ipc:///nowhere" if self.role == "decode" else "",
            list(hello.catalogs),
            Limits(8192, 512),
            LOAD,
            number=hello.number,
        )


class Answers:
    """Distinct leaves with falling scores."""

    def __init__(self, leaves: int) -> None:
        draw = np.random.default_rng(0)
        self._drawn = itertools.cycle([draw.permutation(leaves)[:512].astype(np.int32) for _ in range(DRAWN)])
        self._scores = -np.arange(1, 513, dtype=np.float32) / 16

    def next(self, results: int) -> tuple[bytes, bytes]:
        return next(self._drawn)[:results].tobytes(), self._scores[:results].tobytes()


def main(argv: Sequence[str]) -> None:
    folder, prefill, decode, leaves = argv[0], *map(int, argv[1:])
    answers = Answers(leaves)
    workers = [AtOnce(f"ipc://{folder}/p{at}", "prefill", 1000 + at, answers) for at in range(prefill)]
    workers += [AtOnce(f"ipc://{folder}/d{at}", "decode", 2000 + at, answers) for at in range(decode)]
    poller = Poller()
    for worker in workers:
        poller.add(worker.listener)
    print("ready", flush=True)
    while True:
        poller.wait(1.0)
        for worker in workers:
            worker.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
