"""Prefill on a GPU: a forward per bucket of tokens, captured once, with marks behind every few layers' KV.

A batch runs in the smallest bucket that holds it. Prompts, their pages and the tokens that are computed
already are data that the graph reads; rows behind the last prompt write to a page that nobody owns. The next
batch is prepared in host memory of its own while one runs: what it needs on the device is copied behind that.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from prefill_worker.engines.base import Part, nothing
from xgr_kernels.attention.paged import PagedAttention
from xgr_runtime.kv.pages import slots_of
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.device.buckets import bucket_for, buckets_up_to
from xgr_runtime.model.device.device import Device, Inputs, Progress, Work, losing_the_device
from xgr_runtime.model.device_attention import MakeAttention
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.model.stages import PagedPrefillStage

log = logging.getLogger(__name__)

TOKEN_BUCKETS = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
MAX_PROMPTS = 32  # of a batch
LAYERS_PER_MARK = 4  # a mark costs the graph a few microseconds; KV leaves in groups of so many layers
SLOTS = 2  # for inputs: of the batch that runs, and of the next
POLL = 1e-4  # seconds between looks at the marks


class Graph(NamedTuple):
    """What runs the batches of one bucket."""

    attention: PagedAttention
    forward: Work


class Batch(NamedTuple):
    """What is planned."""

    parts: Sequence[Part]
    graph: Graph
    slot: int  # of the inputs


class BucketEngine:
    """The engine of a GPU: the model, the pool and the captured forwards."""

    max_prompts: int | None = MAX_PROMPTS
    prepares = True

    def __init__(
        self,
        model: ModelBackend,
        pool: KvPool,
        device: Device,
        max_tokens: int,
        make_attention: MakeAttention,
    ) -> None:
        self.model = model
        self.pool = pool
        self.device = device
        self.buckets = buckets_up_to(max_tokens, TOKEN_BUCKETS)
        self._make_attention = make_attention
        hidden = model.identity.hidden
        sizes = {"tokens": max_tokens, "positions": max_tokens, "slots": max_tokens, "last": MAX_PROMPTS}
        self._inputs = Inputs(device, {**sizes, "number": 1}, SLOTS)
        layers = model.identity.layers
        self._marked = sorted({*range(LAYERS_PER_MARK - 1, layers, LAYERS_PER_MARK), layers - 1})
        self._progress = Progress(device, len(self._marked), self._inputs["number"])
        self._launches = 0
        self._prepared: Batch | None = None  # the next launch, most likely
        self._last = torch.zeros(MAX_PROMPTS, hidden, dtype=torch.float32, device=device.where)
        self._last_out = device.staging(MAX_PROMPTS, hidden, dtype=torch.float32)
        self._finished = device.event()
        self._graphs: dict[int, Graph] = {}

    def prepare(self, parts: Sequence[Part]) -> None:
        """See `PrefillEngine`."""
        if self._prepared is not None and self._prepared.parts is parts:
            return
        self._prepared = None
        counts = [len(part.tokens) for part in parts]
        ends = np.cumsum(counts)
        graph = self._graphs[bucket_for(int(ends[-1]), self.buckets)]
        number = self._launches + 1
        slot = number % SLOTS  # not that of the launch before, which may run
        self._fill(slot, number, parts, ends)
        lengths = [part.start + count for part, count in zip(parts, counts, strict=True)]
        with losing_the_device(), self.device.running(), torch.inference_mode():
            graph.attention.plan([0, *ends.tolist()], [part.pages for part in parts], lengths)
        self._prepared = Batch(parts, graph, slot)

    def run(
        self,
        parts: Sequence[Part],
        on_layer: Callable[[int], None],
        meanwhile: Callable[[], None] = nothing,
    ) -> NDArray[np.float32]:
        """See `PrefillEngine`. `on_layer` is called for groups of layers, as their marks pass."""
        self.prepare(parts)
        batch, self._prepared = self._prepared, None
        assert batch is not None
        with losing_the_device(), self.device.running(), torch.inference_mode():
            self._launches += 1
            self._inputs.send(batch.slot)
            batch.graph.forward()
            self._last_out.copy_(self._last, non_blocking=True)
            self._finished.record()
        with losing_the_device():
            self._announce(on_layer, meanwhile)
            self._finished.wait()
        return self._last_out.numpy()[: len(parts)].copy()

    def warm_up(self) -> None:
        """Capture every bucket, the largest first, and run a prompt and a token behind it."""
        self.device.settle()  # memory was filled, and weights were loaded, outside of the queue
        before = self.device.reserved_bytes()
        with self.device.running(), torch.inference_mode():
            for bucket in reversed(self.buckets):  # later graphs fit into the memory of the first
                self._graphs[bucket] = self._capture(bucket)
        taken = (self.device.reserved_bytes() - before) / 2**20
        log.info("captured forwards of %s tokens, %.0f MiB", ", ".join(map(str, self.buckets)), taken)
        pages, token = np.arange(1, dtype=np.int32), np.zeros(1, np.int32)
        for start in range(min(2, self.pool.page_size)):
            self.run([Part(token, pages, start)], lambda layer: None)

    def _fill(self, slot: int, number: int, parts: Sequence[Part], ends: NDArray[np.int64]) -> None:
        """Tokens, where they stand, and where their keys and values go; padding goes to nobody's page."""
        size = self.pool.page_size
        starts = [(part.start, len(part.tokens)) for part in parts]
        slots = self._nowhere()
        slots[: ends[-1]] = np.concatenate(
            [slots_of(part.pages, part.start, len(part.tokens), size) for part in parts]
        )
        self._inputs.fill(
            slot,
            tokens=np.concatenate([part.tokens for part in parts]).astype(np.int64),
            positions=np.concatenate([np.arange(start, start + count) for start, count in starts]),
            slots=slots,
            last=ends - 1,
            number=np.array([number]),
        )

    def _nowhere(self) -> NDArray[np.int64]:
        """The slot for padding, as often as the largest bucket has rows."""
        return np.full(self.buckets[-1], self.pool.scratch_page * self.pool.page_size, np.int64)

    def _announce(self, on_layer: Callable[[int], None], meanwhile: Callable[[], None]) -> None:
        """Tell of each layer once its KV is in the pages; waits for the device, group by group.

        `meanwhile` is for the time in which the last group runs: by then most prompts that can be in the next
        batch have come.
        """
        first = 0
        for index, last in enumerate(self._marked):
            if index == len(self._marked) - 1:
                meanwhile()
            while not (self._progress.passed(index, self._launches) or self._finished.done()):
                time.sleep(POLL)
            for layer in range(first, last + 1):
                on_layer(layer)
            first = last + 1

    def _capture(self, bucket: int) -> Graph:
        """The forward of one bucket; it is captured over padding alone."""
        inputs = self._inputs
        inputs.fill(0, slots=self._nowhere())
        inputs.send(0)
        attention = self._make_attention(bucket, MAX_PROMPTS)
        marks = {layer: index for index, layer in enumerate(self._marked)}

        def on_layer(layer: int) -> None:
            if layer in marks:
                self._progress.mark(marks[layer])

        def forward() -> None:
            keep = inputs["last"] if self.model.prunes else None
            stage = PagedPrefillStage(self.pool, inputs["slots"][:bucket], attention, on_layer, keep)
            hidden = self.model.forward(inputs["tokens"][:bucket], inputs["positions"][:bucket], stage, keep)
            self._last.copy_(hidden[inputs["last"]] if keep is None else hidden)

        return Graph(attention, self.device.capture(forward))
