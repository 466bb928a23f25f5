"""Requests as tests of forwards see them: prompts in pages, beams that fork, several to a forward."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.attention.shared.api import SharedPlan
from xgr_runtime.kv.pages import PageIds
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.stages import CascadeStage, PrefillStage

PAGE, TAIL = 8, 2  # tokens
PAGES, ROWS = 10, 24  # what `make_requests` needs of a pool and of a tail


@dataclass
class Beams:
    """One request: its prompt, its pages, and its beams with the tail rows of their tokens."""

    prompt: Tensor
    pages: PageIds
    base: int
    tokens: list[list[int]] = field(default_factory=list)
    anc: list[list[int]] = field(default_factory=list)

    def fork(self, width: int, vocab: int, draw: np.random.Generator) -> None:
        """Grow `width` beams by one token, each from a random parent; of KV only `anc` is rewritten."""
        if not self.tokens:
            self.tokens, self.anc = (
                [[int(t)] for t in draw.integers(0, vocab, width)],
                [[] for _ in range(width)],
            )
            return
        parents = draw.integers(0, len(self.tokens), width)
        self.anc = [[*self.anc[p], self.base + int(p)] for p in parents]
        self.tokens = [[*self.tokens[p], int(draw.integers(0, vocab))] for p in parents]

    @property
    def level(self) -> int:
        return len(self.tokens[0])


def prefill(backend: ModelBackend, pool: KvPool, requests: list[Beams]) -> list[Tensor]:
    """Logits of each prompt's tokens, from one packed forward."""
    spans, offset = [], 0
    for request in requests:
        spans.append((offset, len(request.prompt), request.pages))
        offset += len(request.prompt)
    tokens = torch.cat([request.prompt for request in requests])
    positions = torch.cat([torch.arange(len(request.prompt)) for request in requests])
    hidden = backend.forward(tokens, positions, PrefillStage(pool, spans))
    return [backend.logits(hidden[offset : offset + length]) for offset, length, _ in spans]


def decode(backend: ModelBackend, pool: KvPool, tail: TailKv, requests: list[Beams], kernels: str) -> Tensor:
    """Logits [R, V] of the newest token of every beam of every request, from one forward."""
    widths = [len(request.tokens) for request in requests]
    plan = SharedPlan(
        row_offsets=[0, *np.cumsum(widths).tolist()],
        pages=[request.pages for request in requests],
        lengths=[len(request.prompt) for request in requests],
        page_size=PAGE,
    )
    beams = [(request, i) for request in requests for i in range(len(request.tokens))]
    unused = 0
    anc = torch.tensor([(r.anc[i] + [unused] * TAIL)[:TAIL] for r, i in beams])
    rows = torch.tensor([r.base + i for r, i in beams])
    tail_len = torch.tensor([r.level - 1 for r, _ in beams])
    tokens = torch.tensor([r.tokens[i][-1] for r, i in beams])
    positions = torch.tensor([len(r.prompt) + r.level - 1 for r, _ in beams])
    stage = CascadeStage(pool, plan, tail.k, tail.v, anc, rows, tail_len, kernels)
    return backend.logits(backend.forward(tokens, positions, stage))


def make_requests(vocab: int, draw: np.random.Generator) -> list[Beams]:
    """Prompts of 13, 32 and 1 tokens in scattered, consecutive and single pages of 8."""
    lengths, bases = (13, 32, 1), (0, 7, 20)
    pages = (np.array([9, 2]), np.array([3, 4, 5, 6]), np.array([8]))
    return [
        Beams(torch.from_numpy(draw.integers(0, vocab, length)), page.astype(np.int32), base)
        for length, page, base in zip(lengths, pages, bases, strict=True)
    ]


class Run:
    """The same prompts and forks through one backend: every logit, and the KV that was written."""

    def __init__(self, backend: ModelBackend, prompts_from: Run | None = None) -> None:
        """`prompts_from` lends the KV of its prompts: what the other kind of worker computed."""
        draw, vocab = np.random.default_rng(7), backend.identity.vocab
        self.pool = KvPool(backend.identity, PAGES, PAGE)
        self.tail = TailKv(backend.identity, TAIL, ROWS)
        requests = make_requests(vocab, draw)
        if prompts_from is None:
            self.logits = prefill(backend, self.pool, requests)
        else:
            self.logits = prompts_from.logits[: len(requests)]
            self.pool.k.copy_(prompts_from.pool.k)
            self.pool.v.copy_(prompts_from.pool.v)
        # Levels differ within a forward, widths grow and shrink.
        for step in [[(0, 3), (1, 5)], [(0, 7), (1, 13), (2, 1)], [(0, 2), (1, 4), (2, 4)]]:
            for index, width in step:
                requests[index].fork(width, vocab, draw)
            live = [requests[index] for index, _ in step]
            self.logits.append(decode(backend, self.pool, self.tail, live, "cpu"))

    def difference(self, other: Run) -> float:
        """The largest of any logit, key or value."""
        ours = [*self.logits, self.pool.k, self.pool.v, self.tail.k, self.tail.v]
        theirs = [*other.logits, other.pool.k, other.pool.v, other.tail.k, other.tail.v]
        return max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True))
