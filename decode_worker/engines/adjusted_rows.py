"""Rows of logits as searches want them that ask for more than selection does: a level's softmax, penalties.

Plain tensor operations in front of the same selection, so that only such searches pay for them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from decode_worker.search import Penalty, Search
from xgr_kernels.beam_select import BeamBatch, cpu
from xgr_kernels.trie import LeafFilter


@torch.inference_mode()
def adjust(searches: Sequence[Search], logits: Tensor, batch: BeamBatch) -> BeamBatch:
    """The batch of these searches; logits [R, V] are changed in place where one of them asks for it."""
    normalisers = list(batch.normalisers)
    for b, search in enumerate(searches):
        question, rows = search.question, slice(batch.row_offsets[b], batch.row_offsets[b + 1])
        if question.codebooks and (codebook := question.codebooks[search.level]) is not None:
            keep_only(logits[rows], codebook)
        if question.penalty is None and question.over is None:
            continue
        own = alone(batch, b, question.over)
        if relate(logits[rows], own) and question.penalty is not None:
            penalise(logits[rows], question.penalty, search.own_tokens())
        normalisers[b] = "given"
    return replace(batch, normalisers=normalisers)


def keep_only(rows: Tensor, tokens: np.ndarray) -> None:
    """Rows [n, V] of minus infinity but for some tokens: their log-sum-exp is that of these."""
    columns = torch.from_numpy(tokens)
    kept = rows[:, columns]
    rows.fill_(-torch.inf)
    rows[:, columns] = kept


def relate(rows: Tensor, batch: BeamBatch) -> bool:
    """Logits [n, V] of one search become log-probabilities; NaN, and False, if they are no numbers."""
    answer = cpu.launch(rows, batch)
    if answer.counts[0, 4]:
        rows.fill_(torch.nan)
        return False
    lse = np.where(np.isneginf(answer.lse), np.float32(0), answer.lse)  # of rows that have no live child
    rows -= torch.from_numpy(lse)[:, None]
    return True


def penalise(rows: Tensor, penalty: Penalty, own: np.ndarray) -> None:
    """Log-probabilities [n, V] of one search after the penalty.

    own [n, l]: tokens of its beams. As `RepetitionPenaltyLogitsProcessor` in Hugging Face's beam search: of
    each token that prompt or beam holds, a log-probability below 0 is multiplied by the factor, once. Some
    evaluation code takes a softmax of that, over all that is in the row.
    """
    prompt = torch.from_numpy(penalty.prompt).expand(len(rows), -1)
    held = torch.cat([prompt, torch.from_numpy(own)], dim=1)  # [n, P + l]
    before = rows.gather(1, held)
    after = torch.where(before < 0, before * penalty.factor, before / penalty.factor)
    rows.scatter_(1, held, after)
    if penalty.renormalize:
        rows -= rows.double().logsumexp(1, keepdim=True).float()


def alone(batch: BeamBatch, b: int, over: LeafFilter | None) -> BeamBatch:
    """Request b of the batch, which wants one child: enough to learn its rows' log-sum-exp.

    over: the leaves that live, if not those of the request's filter.
    """
    rows = slice(batch.row_offsets[b], batch.row_offsets[b + 1])
    return BeamBatch(
        [0, rows.stop - rows.start],
        [batch.level[b]],
        [1],
        [batch.tries[b]],
        [batch.filters[b] if over is None else over],
        [batch.normalisers[b]],
        batch.scores[rows],
        batch.lo[rows],
        batch.hi[rows],
    )
