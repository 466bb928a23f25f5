"""Hugging Face's own constrained beam search: the oracle of tests, and a rival in benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, PrefixConstrainedLogitsProcessor

Children = Mapping[tuple[int, ...], list[int]]
Ranked = list[tuple[tuple[int, ...], float]]
DEAD = -1e6  # where a level has fewer children than beams, generate fills up with beams of minus infinity


class _Softmax(LogitsProcessor):
    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        return scores.log_softmax(-1)


@torch.inference_mode()
def constrained_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    children: Children,
    depth: int,
    width: int,
    length_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    renormalize: bool = False,
) -> list[Ranked]:
    """The `width` best SIDs of each prompt, best first, in one batch; all prompts are of one length.

    children: the tokens that may follow each prefix of a SID. renormalize: a softmax follows the penalty.
    """
    ids = torch.tensor([list(prompt) for prompt in prompts])  # [B, L]
    length = ids.shape[1]

    def allowed(_: int, row: torch.Tensor) -> list[int]:
        return children.get(tuple(row[length:].tolist()), [0])

    mask = PrefixConstrainedLogitsProcessor(allowed, width)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=depth,
        min_new_tokens=depth,
        # after generate's own, of which the penalty is one
        logits_processor=[*([_Softmax()] if renormalize else []), mask],
        do_sample=False,
        early_stopping=True,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=0,
        eos_token_id=None,
    )
    sids = map(tuple, made.sequences[:, length:].tolist())
    every = list(zip(sids, made.sequences_scores.tolist(), strict=True))  # [B * width]
    each = [every[first : first + width] for first in range(0, len(every), width)]
    return [[(sid, score) for sid, score in beams if score > DEAD] for beams in each]
