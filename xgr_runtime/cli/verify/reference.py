"""Hugging Face's `generate` as the other side: float32, held to the catalog, with what its scoring declares.

Constraint, unscored tokens and score modes are one logits processor, which transformers applies to
log-probabilities; the repetition penalty is the library's own. Nothing of generation_config.json counts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import torch
import transformers
from transformers.generation.logits_process import (
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xgr_runtime.catalog.scoring import Scoring
    from xgr_runtime.cli.verify.cases import Case
    from xgr_runtime.cli.verify.sids import SidTable

DEAD = -1e6  # where there are fewer SIDs than beams, generate fills up with beams of minus infinity


class Emitted(NamedTuple):
    """What the search emits: forced tokens before and behind the SID, and whether each is scored."""

    head: tuple[tuple[int, bool], ...]
    tail: tuple[tuple[int, bool], ...]

    @classmethod
    def of(cls, scoring: Scoring) -> Emitted:
        head, tail = (
            tuple((forced.token, forced.scored) for forced in some)
            for some in (scoring.emitted_head, scoring.emitted_tail)
        )
        return cls(head, tail)


class Oracle:
    """One checkpoint in Hugging Face's hands, for one catalog."""

    def __init__(self, model: str, sids: SidTable, scoring: Scoring) -> None:
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._model = load(model, dtype=torch.float32, attn_implementation="eager")
        self._model.eval()
        # A checkpoint's own may sample and penalise, and generate fills it in where we say nothing.
        self._model.generation_config = neutral()
        self._sids, self._scoring, self._emitted = sids, scoring, Emitted.of(scoring)

    @torch.inference_mode()
    def beams(self, prompt: Sequence[int], width: int) -> list[tuple[list[int], float]]:
        """The `width` best token sequences, head and tail included, and their sequences_scores."""
        ids = torch.tensor([list(prompt)])
        emitted = len(self._emitted.head) + self._sids.depth + len(self._emitted.tail)
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=emitted,
            min_new_tokens=emitted,
            logits_processor=self._processors(len(prompt)),
            do_sample=False,
            early_stopping=True,
            length_penalty=self._scoring.length_penalty,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
            eos_token_id=None,
        )
        every = zip(made.sequences[:, len(prompt) :].tolist(), made.sequences_scores.tolist(), strict=True)
        return [(tokens, score) for tokens, score in every if score > DEAD]

    def _processors(self, length: int) -> LogitsProcessorList:
        scoring, over, behind = self._scoring, LogitsProcessorList(), LogitsProcessorList()
        legal = Legal(self._sids, self._emitted, scoring.score_mode == "legal", length)
        if scoring.score_mode == "level":
            over.append(LevelScores(self._sids, self._emitted, scoring.level_tokens, length))
        if scoring.repetition_penalty != 1.0:
            behind.append(RepetitionPenaltyLogitsProcessor(scoring.repetition_penalty))
            if scoring.renormalize and scoring.score_mode != "legal":
                behind.append(LogitNormalization())
        # A penalty is on what the score mode makes of logits.
        return LogitsProcessorList(
            [legal, *behind] if scoring.score_mode == "legal" else [*over, *behind, legal]
        )


def neutral() -> Any:
    """Settings of `generate` that change nothing."""
    make: Any = transformers.GenerationConfig
    return make()


class Legal(LogitsProcessor):
    """Minus infinity for what leads to no SID; 0 for a forced token that is not scored.

    normalised: log-probabilities are relative to the legal tokens of each beam.
    """

    def __init__(self, sids: SidTable, emitted: Emitted, normalised: bool, length: int) -> None:
        self._sids, self._emitted, self._normalised, self._length = sids, emitted, normalised, length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [beams, tokens], scores [beams, V]: log-probabilities."""
        masked = torch.full_like(scores, -torch.inf)
        for row, made in enumerate(input_ids[:, self._length :].tolist()):
            tokens, scored = self._next(made)
            masked[row, tokens] = scores[row, tokens] if scored else 0.0
        return torch.log_softmax(masked, dim=-1) if self._normalised else masked

    def _next(self, made: Sequence[int]) -> tuple[list[int], bool]:
        """The tokens that may follow, and whether they are scored. A dead beam goes on anyhow."""
        head, depth = self._emitted.head, self._sids.depth
        place = len(made) - len(head)
        if place < 0:
            token, scored = head[len(made)]
            return [token], scored
        if place < depth:
            return self._sids.children(made[len(head) :]).tolist() or [0], True
        token, scored = self._emitted.tail[place - depth]
        return [token], scored


class LevelScores(LogitsProcessor):
    """Log-probabilities relative to the tokens of the level: those of its codebook, else those in use."""

    def __init__(
        self, sids: SidTable, emitted: Emitted, codebooks: Sequence[tuple[int, int]], length: int
    ) -> None:
        used = [sids.level(level) for level in range(sids.depth)]
        declared = [np.arange(first, last + 1) for first, last in codebooks]
        forced = [[np.array([token]) for token, _ in some] for some in emitted]
        self._levels = [*forced[0], *(declared or used), *forced[1]]
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As of `Legal`."""
        level = torch.as_tensor(self._levels[input_ids.shape[1] - self._length], device=scores.device)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, level] = torch.log_softmax(scores[:, level], dim=-1)
        return masked


def referred(
    oracle: Oracle, cases: Sequence[Case], prompts: Sequence[Sequence[int]], report: Callable[[int], None]
) -> list[Case]:
    """The cases with the oracle's beams, and with the prompts that it was given."""
    made = []
    for number, (case, prompt) in enumerate(zip(cases, prompts, strict=True), 1):
        said = msgspec.structs.replace(case.said, prompt_ids=list(prompt))
        made.append(dataclasses.replace(case, said=said, beams=oracle.beams(prompt, case.width)))
        report(number)
    return made
