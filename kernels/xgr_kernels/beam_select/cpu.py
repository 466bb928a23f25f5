"""Beam selection on CPU: packs a batch into tables, runs the compiled kernel, unpacks its answer."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xgr_kernels.beam_select import cpu_kernels as kernels
from xgr_kernels.beam_select.types import BeamBatch, Selection
from xgr_kernels.cpu.compiled import one_caller
from xgr_kernels.trie import LeafFilter, Trie, no_filter

_NO_LEVEL = np.empty(0, np.int32)


class KernelAnswer(NamedTuple):
    """What the kernel returns; tests read the log-sum-exp and the cuts from it."""

    lse: np.ndarray  # [R] float32
    child_offset: np.ndarray  # [R+1] int64
    counts: np.ndarray  # [B, 5] int64: results, rows looked at, children looked at, cut, invalid
    out_offset: np.ndarray  # [B+1] int64
    score: np.ndarray  # [N] float32
    node: np.ndarray  # [N, 4] int32: token, parent, lo, hi


def select(logits: Tensor, batch: BeamBatch) -> Selection:
    """See `api.beam_select`."""
    return unpack(launch(logits, batch), batch)


def launch(logits: Tensor, batch: BeamBatch) -> KernelAnswer:
    """Runs the kernel. Raises: ValueError if the beams of a request cover 2**32 leaves or more."""
    offsets = np.array(batch.row_offsets, np.int64)
    row_request = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    lo, hi = np.array(batch.lo, np.int32), np.array(batch.hi, np.int32)
    leaves = np.concatenate([[0], np.cumsum(hi.astype(np.int64) - lo)])[offsets]
    if (np.diff(leaves) >= 2**32).any():
        raise ValueError(
            "the beams of a request cover 2**32 leaves or more: they must be distinct nodes of one trie"
        )
    table, alive = _request_table(batch, offsets)
    with one_caller:
        answer = kernels.select(
            logits.data_ptr(),
            logits.shape[1],
            table,
            row_request,
            np.array(batch.scores, np.float32),
            lo,
            hi,
        )
    del alive  # the kernel has read through their addresses until here
    return KernelAnswer(*answer)


def unpack(answer: KernelAnswer, batch: BeamBatch) -> Selection:
    """The kernel's answer without the gaps that underfull requests leave."""
    offsets = np.array(batch.row_offsets, np.int64)
    found = answer.counts[:, 0]
    kept = np.concatenate([[0], np.cumsum(found)])
    score, node = answer.score, answer.node
    if kept[-1] != len(score):
        take = np.arange(kept[-1]) + np.repeat(answer.out_offset[:-1] - kept[:-1], found)
        score, node = score[take], node[take]
    columns = np.ascontiguousarray(node.T)
    return Selection(
        offsets=kept,
        score=score,
        token=columns[0],
        parent=columns[1],
        lo=columns[2],
        hi=columns[3],
        invalid=answer.counts[:, 4] == 1,
        overflow=np.zeros(len(found), bool),
        rows_skipped=np.diff(offsets) - answer.counts[:, 1],
        elements_visited=answer.counts[:, 2],
        elements_total=np.diff(answer.child_offset[offsets]),
    )


def _request_table(batch: BeamBatch, offsets: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The kernel's request table [B, COLUMNS], and the arrays whose addresses it holds."""
    alive: list[np.ndarray] = []
    table = np.empty((len(offsets) - 1, kernels.COLUMNS), np.int64)
    for b, row in enumerate(table):
        trie, level = batch.tries[b], batch.level[b]
        over = kernels.NORMALISERS[batch.normalisers[b]]
        row[: kernels.LEAF_LEVEL] = offsets[b], offsets[b + 1], batch.width[b], over
        row[kernels.LEAF_LEVEL :] = _addresses(trie, batch.filters[b], level, alive)
    return table, alive


def _addresses(trie: Trie, leaves: LeafFilter, level: int, alive: list[np.ndarray]) -> list[int]:
    """The table's columns from LEAF_LEVEL on."""
    leaf_level = level == len(trie.tokens) - 1
    lo = _NO_LEVEL if leaf_level else trie.lo[level]
    arrays = [
        np.ascontiguousarray(array, dtype)
        for array, dtype in (
            (trie.tokens[level], np.int32),
            (lo, np.int32),
            (leaves.bits, np.uint64),
            (leaves.rank, np.uint32),
            (leaves.deny, np.int32),
        )
    ]
    alive.extend(arrays)
    tokens, first_leaf, bits, rank, deny = ((_address(array), array.size) for array in arrays)
    return [int(leaf_level), tokens[1], tokens[0], first_leaf[0], *bits, *rank, *deny]


def _address(array: np.ndarray) -> int:
    interface: dict[str, Any] = array.__array_interface__
    return int(interface["data"][0])


def warm_up() -> None:
    """Compiles `kernels.select` on a batch of one row; its types are those of every other batch."""
    trie = Trie(2, (np.arange(2, dtype=np.int32),), (_NO_LEVEL,))
    row = np.zeros(1, np.int32)
    batch = BeamBatch(
        [0, 1], [0], [1], [trie], [no_filter()], ["vocab"], row.astype(np.float32), row, row + 2
    )
    select(torch.zeros(1, 2), batch)
