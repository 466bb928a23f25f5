"""Beam selection on a GPU with host data in and out, built anew for each call."""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from xgr_kernels.beam_select import cuda_kernels as kernels
from xgr_kernels.beam_select.cuda import (
    COLUMNS,
    BeamState,
    DeviceFilters,
    DeviceTrie,
    Selector,
    Tuning,
    request_row,
    splits_for,
)
from xgr_kernels.beam_select.types import BeamBatch, Selection


class Launched(NamedTuple):
    """What a batch became on the device; tests read the log-sum-exp and the thresholds from it."""

    selector: Selector
    next: BeamState
    out_begin: np.ndarray  # [B+1] first row of each request in `next`
    rounds: int  # how often storage was too small


def select(logits: Tensor, batch: BeamBatch) -> Selection:
    """See `beam_select`; logits on a GPU."""
    return unpack(launch(logits, batch), batch)


def launch(
    logits: Tensor, batch: BeamBatch, tuning: Tuning | None = None, splits: int | None = None
) -> Launched:
    """Copies a batch to where the logits lie, and selects exactly.

    Raises: ValueError for logits on the CPU, unless triton interprets its kernels there (TRITON_INTERPRET=1).
    """
    if logits.device.type == "cpu" and isinstance(kernels.emit, triton.JITFunction):
        raise ValueError("selection in Triton reads logits on a GPU, or with TRITON_INTERPRET=1 on the CPU")
    offsets = np.array(batch.row_offsets, np.int64)
    R, V = logits.shape
    widths = [min(w, len(t.tokens[n])) for w, t, n in zip(batch.width, batch.tries, batch.level, strict=True)]
    out_begin = np.cumsum([0, *widths])
    selector = Selector(
        rows=R,
        requests=len(widths),
        vocab=V,
        max_width=max([1, *widths, *np.diff(offsets).tolist()]),
        tail_tokens=1,
        device=logits.device,
        tuning=tuning,
    )
    selector.owner.copy_(
        torch.from_numpy(np.repeat(np.arange(len(widths), dtype=np.int32), np.diff(offsets)))
    )
    now = BeamState(R, 1, logits.device)
    for column, values in ((now.score, batch.scores), (now.lo, batch.lo), (now.hi, batch.hi)):
        column.copy_(torch.from_numpy(np.array(values)))
    alive = fill_table(selector, batch, offsets, out_begin)
    next_ = BeamState(int(out_begin[-1]), 1, logits.device)
    rounds = selector.select_exactly(logits, now, next_, splits=splits or splits_for(R, V))
    del alive  # memory that is freed here is reused behind the launches that read it
    return Launched(selector, next_, out_begin, rounds)


def fill_table(selector: Selector, batch: BeamBatch, offsets: np.ndarray, out_begin: np.ndarray) -> list[Any]:
    """Writes the table of a batch; returns the catalogs and filters whose addresses it holds."""
    device, B = selector.table.device, len(out_begin) - 1
    tries = {id(trie): DeviceTrie(trie, device) for trie in batch.tries}
    filters = DeviceFilters(B, max([0, *(trie.leaves for trie in batch.tries)]), device)
    table = np.zeros((B, COLUMNS), np.int64)
    for b in range(B):
        table[b] = request_row(
            row_begin=int(offsets[b]),
            row_end=int(offsets[b + 1]),
            out_begin=int(out_begin[b]),
            width=int(out_begin[b + 1] - out_begin[b]),
            level=batch.level[b],
            legal=batch.normalisers[b] == "legal",
            trie=tries[id(batch.tries[b])],
            leaves=filters.put(b, batch.filters[b]),
        )
    table[:, kernels.LEVEL.value] = 1  # whatever the level: the one ancestor that is kept is then the parent
    selector.table.copy_(torch.from_numpy(table))
    return [tries, filters]


def unpack(run: Launched, batch: BeamBatch) -> Selection:
    """The answer without dead beams, in host memory."""
    offsets = np.array(batch.row_offsets, np.int64)
    count = run.selector.count.cpu().numpy()
    kept = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
    rows = np.arange(kept[-1]) + np.repeat(run.out_begin[:-1] - kept[:-1], count)
    columns = np.ascontiguousarray(run.next.packed.cpu().numpy()[rows].T)
    token, score, lo, hi, parent = columns
    children = np.concatenate([[0], np.cumsum(run.selector.children.cpu().numpy(), dtype=np.int64)])
    total = np.diff(children[offsets])
    return Selection(
        offsets=kept,
        score=score.view(np.float32),
        token=token,
        parent=parent - np.repeat(offsets[:-1], count).astype(np.int32),
        lo=lo,
        hi=hi,
        invalid=run.selector.invalid.cpu().numpy() != 0,
        overflow=run.selector.overflow.cpu().numpy() != 0,
        rows_skipped=np.zeros(len(count), np.int64),
        elements_visited=total.copy(),
        elements_total=total,
    )
