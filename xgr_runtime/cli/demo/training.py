"""Trains the demo's small Qwen3 on a CPU within a budget of seconds and saves it in Hugging Face form.

A machine that is fast enough takes every planned step and ends with the same weights each time; a slower one
takes fewer, so that a newcomer waits about as long anywhere. Sequences are packed into rows, and a block mask
keeps them apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from xgr_runtime.model.backends import shims

shims.install()
# After the shims: where SGLang is installed, transformers may not import without them.
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

WARM_UP = 0.05  # share of the steps
PATIENCE = 3.0  # a machine too slow for the fewest useful steps may take this many times the budget
FINAL_RATE = 0.02  # share of the peak learning rate that is left at the end


@dataclass(frozen=True)
class TrainSettings:
    """Shape of the model and of its training; `most_steps` 0 saves random weights."""

    vocabulary: int
    bos: int
    seconds: float = 60.0
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    row_tokens: int = 256
    rows: int = 8  # per step
    least_steps: int = 200
    most_steps: int = 500
    peak_rate: float = 4e-3
    threads: int = 2
    seed: int = 7


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands after a step; `loss` is a running mean in nats per token."""

    step: int
    planned: int  # steps
    elapsed: float  # seconds
    loss: float


def train(
    sequences: Sequence[npt.NDArray[np.int64]],
    settings: TrainSettings,
    folder: Path,
    report: Callable[[TrainingProgress], None],
) -> TrainingProgress | None:
    """Trains on token sequences, each with its begin token; writes config and weights to `folder`.

    Returns the state after the last step, None if the settings ask for none.
    """
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    model = Qwen3ForCausalLM(model_config(settings))
    final = _fit(model, _pack(sequences, settings), settings, report)
    # One shard needs no bar, and it would tear the demo's own.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return final


def model_config(settings: TrainSettings) -> Qwen3Config:
    """A Qwen3 of about a million parameters, with tied embeddings."""
    return Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=settings.bos,
        eos_token_id=None,
        pad_token_id=None,
        dtype="float32",
    )


def _fit(
    model: Qwen3ForCausalLM,
    batches: Iterator[TrainingBatch],
    settings: TrainSettings,
    report: Callable[[TrainingProgress], None],
) -> TrainingProgress | None:
    """Steps until the plan is done; the plan is revised with every step."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    model.train()
    start, elapsed, step, mean_loss = time.monotonic(), 0.0, 0, float("nan")
    planned, progress = settings.most_steps, None
    while step < planned and elapsed < PATIENCE * settings.seconds:
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_rate * learning_rate_share(step / planned)
        loss = _loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, elapsed = step + 1, time.monotonic() - start
        planned = planned_steps(settings, step, elapsed)
        mean_loss = loss.item() if step == 1 else 0.95 * mean_loss + 0.05 * loss.item()
        progress = TrainingProgress(step, planned, elapsed, mean_loss)
        report(progress)
    return progress


def planned_steps(settings: TrainSettings, step: int, elapsed: float) -> int:
    """How many steps fit the budget at the pace so far, within what the settings allow."""
    affordable = int(settings.seconds * step / max(elapsed, 1e-9))
    return min(settings.most_steps, max(settings.least_steps, affordable))


def learning_rate_share(passed: float) -> float:
    """Share of the peak rate after `passed` (0 to 1) of the steps: linear warm-up, then half a cosine."""
    if passed < WARM_UP:
        return (passed + 0.005) / (WARM_UP + 0.005)
    wave = 0.5 + 0.5 * float(np.cos(np.pi * min(1.0, (passed - WARM_UP) / (1 - WARM_UP))))
    return FINAL_RATE + (1 - FINAL_RATE) * wave


@dataclass(frozen=True)
class TrainingBatch:
    """Packed rows: tokens, positions, owner [rows, row_tokens]; `owner` tells sequences apart."""

    tokens: Tensor
    positions: Tensor
    owner: Tensor


def _pack(sequences: Sequence[npt.NDArray[np.int64]], settings: TrainSettings) -> Iterator[TrainingBatch]:
    """Endless batches; every pass over the sequences takes them in a new order and cuts only at row ends."""
    draw = np.random.default_rng(settings.seed)
    size = settings.rows * settings.row_tokens
    stream = np.empty((3, 0), dtype=np.int64)
    while True:
        while stream.shape[1] < size:
            order = draw.permutation(len(sequences))
            parts = [
                np.stack([sequences[i], np.arange(len(sequences[i])), np.full(len(sequences[i]), n)])
                for n, i in enumerate(order.tolist())
            ]
            stream = np.concatenate([stream, *parts], axis=1)
        taken, stream = stream[:, :size], stream[:, size:]
        tokens, positions, owner = torch.from_numpy(taken.reshape(3, settings.rows, settings.row_tokens))
        yield TrainingBatch(tokens, positions, owner)


def _loss(model: Qwen3ForCausalLM, batch: TrainingBatch) -> Tensor:
    """Mean cross entropy of every next token of the same sequence."""
    same = batch.owner[:, None, :, None] == batch.owner[:, None, None, :]  # [rows, 1, L, L]
    logits = model(
        input_ids=batch.tokens, attention_mask=same.tril(), position_ids=batch.positions, use_cache=False
    ).logits
    within = batch.owner[:, 1:] == batch.owner[:, :-1]
    return torch.nn.functional.cross_entropy(logits[:, :-1][within].float(), batch.tokens[:, 1:][within])
