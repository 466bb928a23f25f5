"""A worker that fails on command: `python -m faulty_worker MODULE FLAGS` runs MODULE, with faults.

What is to go wrong stands in a file of the folder that the variable FAULTS names, one file per worker. It is
looked at whenever the worker passes a point where something can. The product knows nothing of it.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

SLOW = 10  # times
SLOWEST = 0.5  # seconds: a forward that a busy machine held up must not end a worker by the fleet's silence
BOLT = "bolt"  # the file that whoever is struck renames to its own name and this suffix
STRUCK = ".struck"
PREFILL_POINTS = ("queued", "run", "layer", "sent")
DECODE_POINTS = ("queued", "granted", "chunk", "committed", "beams", "answer")


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong, until the file is removed.

    strike: the worker sends itself `signal` at `point` (one of those above), or with none its thread hangs
    there; of all workers that could, the first does, once. slow: forwards take `SLOW` times as long, at most
    `SLOWEST` longer. refuse: a decode worker gives every request up after GRANT. nan, poison: prompts that
    begin with `tokens` get NaN, or kill their prefill worker with `signal`. protocol: the worker, when it
    starts, speaks another version.
    """

    kind: Literal["strike", "slow", "refuse", "nan", "poison", "protocol"]
    point: str = ""
    signal: int = 0
    tokens: list[int] = []

    def names(self, tokens: Any) -> bool:
        """Whether a prompt is one of the victims."""
        return [int(token) for token in tokens[: len(self.tokens)]] == self.tokens


# Made now: once the worker runs, this module is no longer `__main__`, where the types would be looked up.
_DECODER = msgspec.json.Decoder(Fault)


class FaultFile:
    """The end that a test writes and a worker reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, fault: Fault) -> None:
        hidden = self.path.with_suffix(".new")
        hidden.write_bytes(msgspec.json.encode(fault))
        hidden.rename(self.path)

    def read(self, kind: str) -> Fault | None:
        """The fault, if it is of this kind."""
        try:
            fault = _DECODER.decode(self.path.read_bytes())
        except FileNotFoundError:
            return None
        return fault if fault.kind == kind else None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


Wrapper = Callable[..., Any]


def replace(owner: type, method: str, wrapper: Wrapper) -> None:
    """`owner.method` becomes `wrapper(original, self, *args)`."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(original, self), self, *args, **kwargs)

    setattr(owner, method, wrapped)


class Faults:
    """Puts the points into the classes of a worker."""

    def __init__(self, file: FaultFile) -> None:
        self.file = file

    def strike(self, point: str) -> None:
        fault = self.file.read("strike")
        if fault is None or fault.point != point:
            return
        struck = self.file.path.with_suffix(STRUCK)
        with suppress(FileNotFoundError):  # another worker was first
            self.file.path.with_name(BOLT).rename(struck)
            if fault.signal:
                os.kill(os.getpid(), fault.signal)
            while not fault.signal and struck.exists():
                time.sleep(0.02)

    def before(self, owner: type, method: str, point: str, when: Wrapper = lambda *_: True) -> None:
        def wrapper(original: Wrapper, self: Any, *args: Any, **kwargs: Any) -> Any:
            if when(self, *args):
                faults.strike(point)
            return original(*args, **kwargs)

        faults = self
        replace(owner, method, wrapper)

    def after(self, owner: type, method: str, point: str, when: Wrapper = lambda *_: True) -> None:
        def wrapper(original: Wrapper, self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if when(self, *args):
                faults.strike(point)
            return result

        faults = self
        replace(owner, method, wrapper)

    def drag(self, owner: type, method: str) -> None:
        """A forward that is slow."""

        def wrapper(original: Wrapper, self: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            result = original(*args, **kwargs)
            if faults.file.read("slow"):
                time.sleep(min((SLOW - 1) * (time.monotonic() - started), SLOWEST))
            return result

        faults = self
        replace(owner, method, wrapper)

    def prefill(self) -> None:
        from prefill_worker.engines.cpu import CpuPrefillEngine
        from prefill_worker.worker import PrefillWorker
        from xgr_runtime.wire.arrays import int32s

        self.after(PrefillWorker, "accept", "queued")
        self.before(PrefillWorker, "prefill", "run", when=lambda _, turns: bool(turns))
        self.after(PrefillWorker, "layer_ready", "layer")
        self.after(PrefillWorker, "finish", "sent", when=lambda _, turn, *__: turn.last)
        self.drag(CpuPrefillEngine, "run")

        def invalid(original: Wrapper, _: Any, parts: Any, *args: Any) -> Any:
            hidden = original(parts, *args)
            if fault := self.file.read("nan"):
                hidden[[fault.names(part.tokens) for part in parts]] = float("nan")
            return hidden

        def poisoned(original: Wrapper, _: Any, request: Any, now: float) -> None:
            if (fault := self.file.read("poison")) and fault.names(int32s(request.tokens)):
                os.kill(os.getpid(), fault.signal)
            original(request, now)

        replace(CpuPrefillEngine, "run", invalid)
        replace(PrefillWorker, "accept", poisoned)

    def decode(self) -> None:
        from decode_worker.chunk_copies import ChunkCopies
        from decode_worker.engines.cpu import CpuDecodeEngine
        from decode_worker.inbound import Inbound
        from decode_worker.task import TaskFactory
        from decode_worker.worker import DecodeWorker
        from xgr_runtime.errors import WorkerLost

        self.after(TaskFactory, "make", "queued")
        self.after(Inbound, "grant", "granted")
        self.after(ChunkCopies, "note", "chunk")
        self.before(DecodeWorker, "arrived", "committed")
        later = lambda _, searches, *__: any(search.level for search in searches)  # noqa: E731
        self.before(CpuDecodeEngine, "launch", "beams", when=later)
        self.before(DecodeWorker, "answer", "answer")
        self.drag(CpuDecodeEngine, "step")

        def refusing(original: Wrapper, inbound: Any, task: Any, *args: Any) -> None:
            original(task, *args)
            if self.file.read("refuse") and task.id in inbound.arriving:
                inbound.fail(task, WorkerLost("refused after the grant", "decode"))

        replace(Inbound, "grant", refusing)

    def another_protocol(self) -> None:
        """Every module that knows the version is told another one."""
        from xgr_runtime.wire.messages import PROTOCOL

        for module in list(sys.modules.values()):
            if getattr(module, "PROTOCOL", None) == PROTOCOL:
                module.PROTOCOL = PROTOCOL + 1  # type: ignore[attr-defined]


def main() -> None:
    module = sys.argv.pop(1)
    name = next(arg.removeprefix("--name=") for arg in sys.argv if arg.startswith("--name="))
    faults = Faults(FaultFile(Path(os.environ["FAULTS"]) / name))
    if module != "decode_worker":
        faults.prefill()
    if module != "prefill_worker":
        faults.decode()
    if faults.file.read("protocol"):
        faults.another_protocol()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
