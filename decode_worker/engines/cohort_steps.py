"""What a cohort queues on a GPU: the memory of its beams, and the graphs that take them level by level.

A level is two graphs: the forward over its beams, and the head with the selection among their children. What
differs from one cohort to the next (levels, widths, filters, which pages) is data that they read. Where it is
the kernel of attention, or how much of the head is read, there is a graph for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from decode_worker.engines.catalog_slots import BitsPlace, CatalogSlots, SharedBits
from decode_worker.engines.cohort import MAX_REQUESTS, ROW_BUCKETS, Step, StepVectors, plan_steps
from decode_worker.engines.level_heads import LevelHead
from decode_worker.search import Floats, Ints, Question, Search, tail_tokens_of
from xgr_kernels.attention.paged import PagedAttention, quickest
from xgr_kernels.beam_select.cuda import (
    COLUMNS,
    NO_FILTER,
    BeamState,
    DeviceFilters,
    FilterColumns,
    Selector,
    Tuning,
    grown,
    logit_rows,
    request_row,
    splits_for,
)
from xgr_kernels.trie import Trie
from xgr_runtime.errors import CatalogError
from xgr_runtime.model.base import DTYPES, ModelBackend
from xgr_runtime.model.device.buckets import bucket_for, buckets_up_to
from xgr_runtime.model.device.device import Device, Event, Inputs, Work
from xgr_runtime.model.device_attention import MakeAttentions
from xgr_runtime.model.memory.kv_pool import KvPool, TailKv
from xgr_runtime.model.stages import CascadeStage

COHORTS = 2  # in flight: one runs, the next waits behind it


@dataclass(eq=False)
class Cohort:
    """Searches that are in the queue together, and where their answer will be."""

    searches: Sequence[Search]
    place: int  # which of the read-back buffers and filter places is theirs
    finished: Event
    filters: list[FilterColumns] = field(default_factory=list)
    shared: list[BitsPlace] = field(default_factory=list)  # that its filters read

    @cached_property
    def steps(self) -> list[Step]:
        return plan_steps(self.questions)

    @cached_property
    def questions(self) -> list[Question]:
        return [search.question for search in self.searches]

    @property
    def lacks_hidden(self) -> bool:
        """Whether a prompt came without its last hidden state."""
        return any(search.hidden is None for search in self.searches)


class CohortAnswer(NamedTuple):
    """What became of a search of a cohort."""

    scores: Floats  # [n] best first
    leaves: Ints  # [n]
    ceiling: float  # the highest score that bounds what a level passed over; -inf: none did
    invalid: bool
    overflow: bool  # no answer: its candidates did not fit


class Forward(NamedTuple):
    """Beams -> hidden states, by one kernel of attention."""

    attention: PagedAttention
    run: Work


class Graphs(NamedTuple):
    """What runs a step of one bucket of rows."""

    forwards: list[Forward]
    select: dict[LevelHead, Work]  # hidden states and beams -> the next beams


class Planned(NamedTuple):
    """What a bucket's attention was planned for last."""

    cohort: Cohort
    offsets: list[int]
    lengths: list[int]


class CohortSteps:
    """Memory of fixed size for `COHORTS` cohorts in turn, and a graph for every bucket of rows."""

    def __init__(
        self,
        model: ModelBackend,
        pool: KvPool,
        device: Device,
        trie: Trie,
        max_rows: int,
        max_width: int,
        make_attentions: MakeAttentions,
        max_requests: int = MAX_REQUESTS,
        tuning: Tuning | None = None,
        filter_bytes: int = 64 << 20,
    ) -> None:
        """`trie`: of the first version, of all levels that a search may descend; later ones have as many.

        `tuning` are sizes of the selection's launches, which change no answer. `filter_bytes`: that bitmaps
        of versions and conditions may take on the device.

        Raises ValueError for widths or tokens that selection cannot tell apart.
        """
        self.model = model
        self.pool = pool
        self.device = device
        self.buckets = buckets_up_to(max_rows, ROW_BUCKETS)
        self.max_rows = max_rows
        self.max_width = max_width
        self.max_requests = max_requests = min(max_requests, max_rows)
        self._levels = len(trie.tokens)  # some cohorts have less: scores that are relative need no tail
        self.tail_tokens = tail_tokens = tail_tokens_of(self._levels)
        self._make_attentions = make_attentions
        where, identity = device.where, model.identity
        self.catalogs = CatalogSlots(device, trie)
        self.bits = SharedBits(device, filter_bytes)
        self._filters = DeviceFilters(COHORTS * max_requests, grown(trie.leaves), where)
        self._selector = Selector(
            rows=max_rows,
            requests=max_requests,
            vocab=identity.vocab,
            max_width=max_width,
            tail_tokens=tail_tokens,
            device=where,
            tuning=tuning,
        )
        self._now = BeamState(max_rows, tail_tokens, where)
        self._next = BeamState(max_rows, tail_tokens, where)
        self._tail = TailKv(identity, tail_tokens, max_rows, where)
        self._hidden = torch.zeros(max_rows, identity.hidden, dtype=DTYPES[identity.dtype], device=where)
        self._logits = logit_rows(max_rows, identity.vocab, where)
        self._whole_head = LevelHead.whole(model.head)
        self._level_heads = LevelHead.by_level(model.head, trie)
        sizes = {"table": max_requests * COLUMNS, "owner": max_rows, "positions": max_rows}
        self._inputs = Inputs(device, sizes | {"tail_len": max_rows}, slots=COHORTS * self._levels)
        self._first = device.staging(COHORTS, max_requests, identity.hidden, dtype=DTYPES[identity.dtype])
        self._roots = device.staging(COHORTS, max_requests, 4 + tail_tokens, dtype=torch.int32)
        self._beams_out = device.staging(COHORTS, max_rows, 4 + tail_tokens, dtype=torch.int32)
        self._outcome = device.staging(COHORTS, 4, max_requests, dtype=torch.int32)
        self._rows = torch.arange(max_rows, device=where)
        self._graphs: dict[int, Graphs] = {}
        self._first_select: dict[LevelHead, Work] = {}
        self._planned: dict[PagedAttention, Planned] = {}

    def capture(self) -> None:
        """Capture every step, the widest first: later graphs fit into the memory of the first."""
        for bucket in reversed(self.buckets):
            self._graphs[bucket] = Graphs(self._capture_forwards(bucket), self._capture_select(bucket))
        self._first_select = self._capture_select(self.max_requests)

    # --- what a cohort needs before it is queued ---

    def prepare(self, cohort: Cohort) -> None:
        """All that the host works out, in staging memory of the cohort's place: no cohort in flight has it.

        Nothing is launched. Filters and plans are copied to the device, the plans behind what is queued: of
        each bucket the first, for a second one has to wait for the forward that reads the first.
        """
        with self.device.alongside():
            first = cohort.place * self.max_requests
            for b, question in enumerate(cohort.questions):
                cohort.filters.append(self._filters.put(first + b, question.filter, self._shared(cohort, b)))
        self._fill_beams(cohort)
        planned: set[PagedAttention] = set()
        for step in cohort.steps:
            self._fill_inputs(cohort, step)
            if not self._runs_model(cohort, step):
                continue
            attention = self._forward_of(cohort, step).attention
            if attention not in planned:
                self._plan(attention, cohort, step)
                planned.add(attention)

    def _shared(self, cohort: Cohort, b: int) -> FilterColumns:
        """Where the bits of request b lie already, if others read them too and there is memory for them."""
        question = cohort.questions[b]
        if not question.shared_bits or not len(question.filter.bits):
            return NO_FILTER
        try:
            place = self.bits.of(question.filter)
        except CatalogError:
            return NO_FILTER
        cohort.shared.append(place)
        return place.columns

    # --- what a cohort queues ---

    def enqueue(self, cohort: Cohort, exactly: bool = False) -> None:
        """All levels of a prepared cohort, and behind them the copy of the answer back to the host."""
        self._begin(cohort)
        for step in cohort.steps:
            head = self._head(cohort, step.level)
            self._inputs.send(self._slot(cohort, step))
            if self._runs_model(cohort, step):
                self._forward(cohort, step)
            if not step.level:
                self._place_hidden(cohort)
            bucket = bucket_for(step.rows, self.buckets) if step.level else self.max_requests
            if exactly:
                self._select(bucket, head, exactly)
            elif step.level:
                self._graphs[bucket].select[head]()
            else:
                self._first_select[head]()
        self._read_back(cohort)

    @staticmethod
    def _runs_model(cohort: Cohort, step: Step) -> bool:
        """Whether the step begins with a forward; the first one seldom does."""
        return step.level > 0 or cohort.lacks_hidden

    def _slot(self, cohort: Cohort, step: Step) -> int:
        """Of the staging memory for the step's inputs."""
        return cohort.place * self._levels + step.level

    def _fill_beams(self, cohort: Cohort) -> None:
        """Every request's one beam at the root, its prompt's last token, and the hidden state of that."""
        roots = self._roots[cohort.place, : len(cohort.searches)].numpy()
        for root, question in zip(roots, cohort.questions, strict=True):
            root[:4] = question.last_token, 0, 0, question.trie.leaves
        for hidden, search in zip(self._first[cohort.place], cohort.searches, strict=False):
            if search.hidden is not None:
                hidden.copy_(torch.from_numpy(search.hidden))

    def _begin(self, cohort: Cohort) -> None:
        """The beams at the root become the present ones."""
        roots = self._roots[cohort.place, : len(cohort.searches)]
        self._now.packed[: len(roots)].copy_(roots, non_blocking=True)
        self._selector.begin()

    def _head(self, cohort: Cohort, level: int) -> LevelHead:
        """The level's tokens are enough where no score is relative to others; a NaN of others is not seen.

        A later version may have tokens beyond those of the first one's level, and then reads all.
        """
        head = self._level_heads.get(level, self._whole_head)
        enough = all(question.normaliser(level) == "legal" for question in cohort.questions)
        enough = enough and all(
            head.first_token <= low and end <= head.first_token + head.head.vocab
            for low, end in (self.catalogs.of(question.trie).tokens[level] for question in cohort.questions)
        )
        return head if enough else self._whole_head

    def _fill_inputs(self, cohort: Cohort, step: Step) -> None:
        """What the step's kernels read of its requests and rows."""
        head = self._head(cohort, step.level)
        vectors = StepVectors.of(step, cohort.questions, self.max_rows, self.tail_tokens)
        table = [
            request_row(
                row_begin=int(step.offsets[b]),
                row_end=int(step.offsets[b + 1]),
                out_begin=int(step.out_offsets[b]),
                width=question.width,
                level=step.level,
                legal=question.normaliser(step.level) == "legal",
                trie=self.catalogs.of(question.trie).placed,
                leaves=cohort.filters[b],
                out_rows=int(step.out_offsets[b + 1] - step.out_offsets[b]),
                first_token=head.first_token,
                passes_over=question.passes_over(step.level),
            )
            for b, question in enumerate(cohort.questions)
        ]
        self._inputs.fill(
            self._slot(cohort, step),
            table=np.concatenate(table),
            owner=vectors.owner,
            positions=vectors.positions,
            tail_len=vectors.tail_len,
        )

    def _forward(self, cohort: Cohort, step: Step) -> None:
        """The newest token of every beam through the layers."""
        forward = self._forward_of(cohort, step)
        self._plan(forward.attention, cohort, step)
        forward.run()

    def _forward_of(self, cohort: Cohort, step: Step) -> Forward:
        """The one whose attention ends earlier."""
        forwards = self._graphs[bucket_for(step.rows, self.buckets)].forwards
        rows, lengths = np.diff(step.offsets).tolist(), self._lengths(cohort, step)
        return forwards[quickest([forward.attention for forward in forwards], rows, lengths)]

    @staticmethod
    def _lengths(cohort: Cohort, step: Step) -> list[int]:
        """Tokens that each request's beams read in its pages; the newest token is not in them."""
        return [question.prompt_tokens - (step.level == 0) for question in cohort.questions]

    def _plan(self, attention: PagedAttention, cohort: Cohort, step: Step) -> None:
        """Which rows read which pages, unless that is what was planned last."""
        plan = Planned(cohort, step.offsets.tolist(), self._lengths(cohort, step))
        if self._planned.get(attention) != plan:  # levels of the same rows share a plan
            attention.plan(plan.offsets, [search.pages for search in cohort.searches], plan.lengths)
            self._planned[attention] = plan

    def _place_hidden(self, cohort: Cohort) -> None:
        """The hidden states that came with the KV take their places; the others were computed there."""
        first = self._first[cohort.place]
        given = [b for b, search in enumerate(cohort.searches) if search.hidden is not None]
        if len(given) == len(cohort.searches):
            self._hidden[: len(given)].copy_(first[: len(given)], non_blocking=True)
        else:
            for b in given:
                self._hidden[b].copy_(first[b], non_blocking=True)

    def _read_back(self, cohort: Cohort) -> None:
        self._beams_out[cohort.place].copy_(self._now.packed, non_blocking=True)
        self._outcome[cohort.place].copy_(self._selector.outcome, non_blocking=True)
        cohort.finished.record()

    # --- what is captured ---

    def _capture_forwards(self, bucket: int) -> list[Forward]:
        """Of one bucket, captured over beams that belong to nobody."""
        attentions = self._make_attentions(bucket, self.max_requests)
        return [Forward(attention, self._capture_forward(bucket, attention)) for attention in attentions]

    def _capture_forward(self, bucket: int, attention: PagedAttention) -> Work:
        now, inputs, tail = self._now, self._inputs, self._tail

        def forward() -> None:
            stage = CascadeStage(
                self.pool,
                attention,
                tail.k,
                tail.v,
                anc=now.anc[:bucket],
                rows=self._rows[:bucket],
                tail_len=inputs["tail_len"][:bucket],
                backend="cuda",
            )
            hidden = self.model.forward(now.token[:bucket].long(), inputs["positions"][:bucket], stage)
            self._hidden[:bucket].copy_(hidden)

        return self.device.capture(forward)

    def _capture_select(self, rows: int) -> dict[LevelHead, Work]:
        """One for each head that a level may have."""
        heads = [self._whole_head, *self._level_heads.values()]
        return {head: self.device.capture(partial(self._select, rows, head)) for head in heads}

    def _select(self, rows: int, head: LevelHead, exactly: bool = False) -> None:
        """The next beams, which become the present ones, from the hidden states of `rows` rows.

        `exactly` takes as many rounds as the candidates need, and reads back in between.
        """
        logits = self._logits[:rows, : head.columns]  # what a part of the vocabulary fills, it fills wholly
        head.head.logits_into(self._hidden[:rows], logits[:, : head.head.vocab])
        selector, splits = self._selector, splits_for(rows, head.columns)
        selector.table.copy_(self._inputs["table"].view(self.max_requests, COLUMNS))
        selector.owner.copy_(self._inputs["owner"])
        select = selector.select_exactly if exactly else selector.select
        select(logits, self._now, self._next, splits=splits)
        self._now.packed.copy_(self._next.packed)

    def answers(self, cohort: Cohort) -> list[CohortAnswer]:
        """What a finished cohort left in host memory, search by search."""
        beams = self._beams_out[cohort.place].numpy()
        outcome = self._outcome[cohort.place].numpy()
        counts, invalid, overflow, _ = outcome
        ceilings = outcome[3].view(np.float32)
        begins = cohort.steps[-1].out_offsets
        answers = []
        for b in range(len(cohort.searches)):
            mine = beams[begins[b] : begins[b] + counts[b]]
            scores, leaves = mine[:, 1].copy().view(np.float32), mine[:, 2].copy()
            flags = bool(invalid[b]), bool(overflow[b])
            answers.append(CohortAnswer(scores, leaves, float(ceilings[b]), *flags))
        return answers
