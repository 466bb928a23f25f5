"""KV memory and weights that two processes share: the same bits on both sides, pulled, and after a death."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import torch
from lab import Lab
from results import Figures
from torch import Tensor, nn

from xgr_runtime.kv.pages import PagePool
from xgr_runtime.kv.published import SharedWeights
from xgr_runtime.model.memory.kv_copies import Copies
from xgr_runtime.model.memory.kv_memory import exported_memory, mapped_memory, private_memory
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.memory.shared_weights import adopt_weights, export_weights
from xgr_runtime.wire.messages import AttemptId, KvReady, ModelIdentity, SharedKv

PAGE = 16
PATIENCE = 120.0  # seconds for a child to start, or to answer
IMPORTED = ["torch", "xgr_runtime.model.memory.shared_weights", "xgr_runtime.model.memory.kv_copies"]
ATTEMPT = AttemptId(1, 1, 1, 1, 1)


def identity(lab_is_toy: bool) -> ModelIdentity:
    heads, dim = (2, 8) if lab_is_toy else (8, 128)
    return ModelIdentity("", "bfloat16", 4, heads, dim, 64, 100, 1)


def test_shared_kv(lab: Lab, figures: Figures) -> None:
    """Another process maps a pool, sees what its owner writes and frees, and pulls a prompt out of it."""
    shape, pages = identity(lab.toy), 8 if lab.toy else 2048
    pool = KvPool(shape, pages, PAGE, exported_memory(shape, pages, PAGE, lab.where))
    pool.k.copy_(lab.randn(*pool.k.shape))
    pool.v.copy_(lab.randn(*pool.v.shape))
    lab.settle()
    with child(_read, lab, msgspec.json.encode(pool.memory.shared)) as ask:
        assert ask("bits") == bits(pool), "it is one memory"
        pool.k[:, 1] += 1
        lab.settle()
        assert ask("bits") == bits(pool), "the owner's writes are seen"
        owned = PagePool(pages, pool.memory.generations)
        held = owned.allocate(pages)
        assert held is not None
        owned.release(held[3:4])
        assert ask("generations") == [3], "the page that was given back, and no other"
        equal, seconds = ask("pull")
        assert equal, "a copy is bit for bit what it was taken from"
        moved = 2 * (pages - 1) * PAGE * shape.token_bytes
        figures.time("pull of a whole pool", seconds, moved / lab.rates["copy"])
        before = bits(pool)
    assert bits(pool) == before, "the owner's memory is its own when its reader dies"


def test_dead_owner(lab: Lab, figures: Figures) -> None:
    """What a reader finds when the owner is killed. Main memory stays; nothing relies on a GPU's."""
    with child(_own, lab, b"") as ask_owner, child(_read, lab, ask_owner("where")) as ask:
        before = ask("bits")
        os.kill(ask_owner("pid"), signal.SIGKILL)
        time.sleep(0.5)
        try:
            after = ask("bits") == before
        except (EOFError, RuntimeError):
            after = False
    figures.note("memory of a dead owner", readable=after)
    assert after or lab.cuda, "main memory goes with the last process that has it mapped"


def test_shared_weights(lab: Lab, figures: Figures) -> None:
    """Another process computes the same with our weights, and frees its own."""
    module = _module(lab.toy, lab.where)
    expected = bits_of(module.weight)
    shared, block = export_weights(module)
    assert bits_of(module.weight) == expected, "moving changes nothing"
    with child(_adopt, lab, msgspec.json.encode(shared)) as ask:
        assert ask("bits") == expected, "it is one memory"
        freed = ask("freed")
        figures.note("weights of its own, given back", bytes=freed)
        assert not lab.cuda or freed > module.weight.nbytes / 2, "its own copy is gone from the GPU"
    del block


# --- the other process ---


@contextmanager
def child(work: Callable[..., None], lab: Lab, given: bytes) -> Iterator[Callable[[str], Any]]:
    """A process that answers questions by name, until it is killed."""
    context = multiprocessing.get_context("forkserver")  # which has no device: it only imports
    context.set_forkserver_preload(IMPORTED)
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, str(lab.where), lab.toy, given), daemon=True)
    process.start()
    theirs.close()

    def ask(question: str) -> Any:
        ours.send(question)
        if not ours.poll(PATIENCE):
            raise RuntimeError(f"no answer to {question!r}")
        return ours.recv()

    try:
        yield ask
    finally:
        process.kill()
        process.join()
        ours.close()


def _read(pipe: Connection, where: str, toy: bool, given: bytes) -> None:
    shared = msgspec.json.decode(given, type=SharedKv)
    shape, device = identity(toy), torch.device(where)
    pool = KvPool(shape, shared.pages, shared.page_size, mapped_memory(shared, shape))
    while True:
        match pipe.recv():
            case "bits":
                pipe.send(bits(pool))
            case "generations":
                pipe.send(np.flatnonzero(pool.memory.generations).tolist())
            case "pull":
                pipe.send(_pull(pool, device))


def _pull(source: KvPool, device: torch.device) -> tuple[bool, float]:
    """Whether a copy of all pages but the last is the same, and the seconds of a second one."""
    count = (source.pages - 1) * PAGE
    memory = private_memory(source.identity, source.pages, PAGE, device)
    ours = KvPool(source.identity, source.pages, PAGE, memory)
    theirs, here = (np.arange(first, source.pages - 1 + first, dtype=np.int32) for first in (0, 1))
    copies, seconds = Copies(ours), 0.0
    for _ in range(2):
        started = time.perf_counter()
        whole = KvReady(ATTEMPT, 0, 0, source.identity.layers, 0, count, 0, source.identity.kv_heads)
        copied = copies.pull(whole, source, theirs, here)
        while not copied.done():
            pass
        seconds = time.perf_counter() - started
    same = [torch.equal(a[:, 1:-1], b[:, :-2]) for a, b in ((ours.k, source.k), (ours.v, source.v))]
    return all(same), seconds


def _own(pipe: Connection, where: str, toy: bool, given: bytes) -> None:
    shape = identity(toy)
    pool = KvPool(shape, 8, PAGE, exported_memory(shape, 8, PAGE, torch.device(where)))
    pool.k.fill_(1.5)
    bits(pool)  # which waits until it is done
    while True:
        question = pipe.recv()
        pipe.send(os.getpid() if question == "pid" else msgspec.json.encode(pool.memory.shared))


def _adopt(pipe: Connection, where: str, toy: bool, given: bytes) -> None:
    module = _module(toy, torch.device(where))
    before = _free(where)
    adopt_weights(module, msgspec.json.decode(given, type=SharedWeights))
    freed = _free(where) - before
    while True:
        pipe.send(freed if pipe.recv() == "freed" else bits_of(module.weight))


def _module(toy: bool, where: torch.device) -> nn.Linear:
    """Up to 512 MiB of weights."""
    width = 64 if toy else 16384
    return nn.Linear(width, width, bias=False, dtype=torch.bfloat16, device=where).requires_grad_(False)


def _free(where: str) -> int:
    return int(torch.cuda.mem_get_info(torch.device(where))[0]) if where.startswith("cuda") else 0


def bits(pool: KvPool) -> list[int]:
    """Sums over the memory's 16-bit words, apart for keys and values, in which every bit counts."""
    return [bits_of(pool.k), bits_of(pool.v)]


def bits_of(x: Tensor) -> int:
    return int(x.view(torch.int16).to(torch.int64).sum())
